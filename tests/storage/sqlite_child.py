"""Commits to an SQLite store until it is killed, and prints the number of each commit when it is acknowledged.

Opening the database, its WAL or its index in any way but by SQLite would drop this process's locks on it: an audit hook
ends the process where Python does.
"""

import asyncio
import sys
from pathlib import Path

from homeport.storage import Collection, Put, open_storage

NOTES = Collection("notes")


async def main(path: Path) -> None:
    files = {str(path), f"{path}-wal", f"{path}-shm"}
    opened = False

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal opened
        opened = opened or event == "sqlite3.connect/handle"
        if opened and event == "open" and str(arguments[0]) in files:
            print(f"opened {arguments[0]}", flush=True)

    sys.addaudithook(audit)
    async with open_storage(f"sqlite:{path}", [NOTES]) as storage:
        number = 0
        while True:
            number += 1
            await storage.commit([Put(NOTES, f"{number:06}", {"text": "x" * 2000})])
            print(number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
