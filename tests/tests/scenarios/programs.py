"""Small programs of the scenarios: `programs.py NAME ARGUMENT...` (python3-minimal suffices)."""
import os
import socket
import subprocess
import sys
import time


def compute():
    """Uses the processor and speaks to nobody."""
    number = 1
    while True:
        number = number * 48271 % 2147483647


def produce():
    """Writes a few KiB of text ten times a second: more than what tr and cat keep back."""
    line = ("x" * 79 + "\n") * 120
    while True:
        sys.stdout.write(line)
        sys.stdout.flush()
        time.sleep(0.1)


def dots():
    """Writes a dot five times a second."""
    while True:
        sys.stdout.write(".")
        sys.stdout.flush()
        time.sleep(0.2)


def log():
    """Writes a line five times a second."""
    while True:
        print("still here", flush=True)
        time.sleep(0.2)


def statements():
    """Writes a query three times a second."""
    while True:
        print("select 1;", flush=True)
        time.sleep(0.3)


def serve(path):
    """Answers HTTP on a unix socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(16)
    while True:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        connection.close()


def visit(path):
    """Asks such a server five times a second."""
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while connection.recv(4096):
                pass
        time.sleep(0.2)


def answer(address, port):
    """Answers each line on a TCP connection with a line."""
    listener = socket.create_server((address, int(port)))
    while True:
        connection, _ = listener.accept()
        for line in connection.makefile("rb"):
            connection.sendall(line)


def ask(address, port):
    """Sends such a server a line five times a second."""
    connection = socket.create_connection((address, int(port)))
    answers = connection.makefile("rb")
    while True:
        connection.sendall(b"question\n")
        answers.readline()
        time.sleep(0.2)


def query(port, database):
    """Answers each line on a TCP connection with what PostgreSQL says on the loopback."""
    psql = subprocess.Popen(
        ["psql", "-qAtX", "-h", "127.0.0.1", "-U", "postgres", database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    listener = socket.create_server(("0.0.0.0", int(port)))
    while True:
        connection, _ = listener.accept()
        for _ in connection.makefile("rb"):
            psql.stdin.write(b"select count(*) from pg_class;\n")
            psql.stdin.flush()
            connection.sendall(psql.stdout.readline())


globals()[sys.argv[1]](*sys.argv[2:])
