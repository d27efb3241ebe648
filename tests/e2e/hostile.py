"""Slow and greedy clients, in a process of their own: PORT KEY BODY. Ends with its input, then says what it did.

200 connections that send a header byte by byte, 200 that send nothing, and four addresses that submit as fast as they
are answered.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
from collections import Counter
from contextlib import suppress

PORT, KEY, BODY = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ENDED, ANSWERS = threading.Event(), Counter[int]()


def flood(address: str) -> None:
    headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
    while not ENDED.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60, source_address=(address, 0))
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/api/v1/generate", BODY, headers)
            ANSWERS[connection.getresponse().status] += 1
        connection.close()
        ENDED.wait(0.02)  # 200 submits a second in all: more would measure this process


def slow() -> None:
    held = [socket.create_connection(("127.0.0.1", PORT), 60, ("127.0.0.30", 0)) for _ in range(400)]
    for sock in held[:200]:
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
    print("ready", flush=True)
    while not ENDED.wait(1):
        for sock in held[:200]:
            with suppress(OSError):  # nginx ends them after client_header_timeout
                sock.sendall(b"x")


threads = [threading.Thread(target=flood, args=(f"127.0.0.{20 + number}",)) for number in range(4)]
threads.append(threading.Thread(target=slow))
for thread in threads:
    thread.start()
sys.stdin.read()
ENDED.set()
for thread in threads:
    thread.join()
print(json.dumps(ANSWERS))
