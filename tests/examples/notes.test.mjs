// Tests of an app that keeps notes, against a Homeport server that they start themselves:
//   node --test notes.test.mjs          (Node 18 or newer; `homeport` on PATH)
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import { createInterface } from "node:readline";
import { after, before, beforeEach, test } from "node:test";
import { fileURLToPath } from "node:url";

const schemas = path.join(path.dirname(fileURLToPath(import.meta.url)), "schemas");
const json = { "Content-Type": "application/json" };
let server, url;

before(async () => {
  const args = ["serve", "--test", "--port", "0", "--storage", "memory:", "--schemas", schemas];
  server = spawn("homeport", args, { stdio: ["ignore", "pipe", "ignore"] });
  const [ready] = await once(createInterface(server.stdout), "line");
  url = ready.split(" ").at(-1);
});

after(async () => {
  server.kill("SIGTERM");
  const [code] = await once(server, "exit");
  assert.equal(code, 0);
});

async function control(action, body = {}) {
  const answer = await fetch(`${url}/__test__/${action}`, { method: "POST", headers: json, body: JSON.stringify(body) });
  assert.ok(answer.ok, await answer.clone().text());
}

beforeEach(() => control("reset"));

// The app under test: it saves a note, and tries again where the server could not be reached or was not well.
async function save(note, attempts = 3) {
  for (let attempt = 1; ; attempt++) {
    try {
      const answer = await fetch(`${url}/collections/note/${note.id}`, {
        method: "PUT", headers: { ...json, Authorization: "Bearer secret" }, body: JSON.stringify(note),
      });
      if (answer.status < 500) return answer;
    } catch (error) {
      if (attempt === attempts) throw error;
    }
    if (attempt === attempts) throw new Error("the server is not well");
  }
}

async function titles() {
  const { records } = await (await fetch(`${url}/collections/note`)).json();
  return records.map((note) => note.title);
}

async function asked() {
  const { requests } = await (await fetch(`${url}/__test__/requests`)).json();
  return requests;
}

test("a note is saved", async () => {
  assert.equal((await save({ id: "n3", title: "Eggs" })).status, 201);
  assert.deepEqual(await titles(), ["Milk", "Bread", "Eggs"]);
});

test("each test begins with the seed", async () => {
  assert.deepEqual(await titles(), ["Milk", "Bread"]);
});

test("a note is saved when the server is well again", async () => {
  await control("faults", { path: "/collections/note/*", status: 503 });
  await control("faults", { path: "/collections/note/*", disconnect: true });
  assert.equal((await save({ id: "n3", title: "Eggs" })).status, 201);
  const requests = await asked();
  assert.deepEqual(requests.map(({ method, path, status }) => [method, path, status]), [
    ["PUT", "/collections/note/n3", 503],
    ["PUT", "/collections/note/n3", null],
    ["PUT", "/collections/note/n3", 201],
  ]);
  assert.equal(JSON.parse(requests[0].body).title, "Eggs");
  assert.equal(requests[0].headers.authorization, "Bearer …");
});

test("the app gives up after three attempts", async () => {
  await control("faults", { path: "/collections/*", method: "PUT", status: 500, times: 9 });
  await assert.rejects(save({ id: "n3", title: "Eggs" }), /not well/);
  assert.equal((await asked()).length, 3);
  assert.deepEqual(await titles(), ["Milk", "Bread"]);
});

test("a note says when it was saved", async () => {
  await control("clock", { now: "2026-01-01T00:00:00Z" });
  await control("clock", { advance_seconds: 90 });
  const note = await (await save({ id: "n3", title: "Eggs" })).json();
  assert.equal(note._meta.updated_at, "2026-01-01T00:01:30.000Z");
});

test("pages of other origins may call", async () => {
  const answer = await fetch(`${url}/collections/note`, { headers: { Origin: "https://app.example" } });
  assert.equal(answer.headers.get("access-control-allow-origin"), "https://app.example");
});
