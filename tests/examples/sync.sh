#!/usr/bin/env bash
# Tests of a script that reports what a machine used, against a server of its own: bash sync.sh (`homeport` on PATH).
set -euo pipefail

scratch="$(mktemp -d)"
homeport serve --test --port 0 --storage memory: --ready-file "$scratch/url" >"$scratch/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
for _ in {1..200}; do
    [[ -s $scratch/url ]] && break
    kill -0 "$server"  # still there
    sleep 0.05
done
url="$(<"$scratch/url")"
key="$(printf 'ab%.0s' {1..32})"

control() {  # an action, and the document that goes with it; without, what was asked
    curl -sS --fail -H "Content-Type: application/json" "$url/__test__/$1" ${2+--data "$2"}
}
is() { [[ $1 == "$2" ]] || { echo "line ${BASH_LINENO[0]}: $1 is not $2"; exit 1; }; }

# The script under test: it reports, and tries again where the server could not be reached or was not well.
report() {
    curl -sS --retry 3 --retry-delay 1 --retry-all-errors -o /dev/null -w '%{http_code}' "$url/api/sync" \
        -H 'Content-Type: application/json' -d '{
        "userKey": "'"$key"'", "hostname": "M4x.local", "timestamp": "2025-06-03T10:30:00Z",
        "usage": {"totalTokens": 7, "inputTokens": 7, "outputTokens": 0, "cacheCreationTokens": 0, "cacheReadTokens": 0},
        "sessions": {"total": 1, "active": 1, "averageDuration": 1},
        "costs": {"opus": 1, "sonnet": 0, "haiku": 0, "actual": 1},
        "hourlyUsage": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0], "version": "3.0.2"}' 2>/dev/null
}
stats() { curl -sS -o /dev/null -w '%{http_code}' "$url/api/stats/$key"; }

control clock '{"now": "2025-06-03T12:00:00Z"}' >/dev/null
is "$(report)" 200
is "$(stats)" 200
control reset ''
is "$(stats)" 404

control faults '{"path": "/api/sync", "disconnect": true}' >/dev/null
is "$(report)" 200
is "$(stats)" 200
is "$(control requests | grep -o '"path":"/api/sync"' | wc -l)" 2

control clock '{"advance_seconds": 8640000}' >/dev/null  # reports are kept for 90 days
for _ in {1..100}; do
    [[ $(stats) == 404 ]] && break
    sleep 0.02
done
is "$(stats)" 404

kill -TERM "$server"
wait "$server"
echo ok
