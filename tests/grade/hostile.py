"""Submissions that try to get what they have not earned, or to do harm: name -> source."""

HEAD = b"import os, sys, time, socket, signal, threading, ctypes\nimport numpy as np\n"
FUNCTION = b"def attention(q, k, v):\n"


def _body(text: str) -> bytes:
    return HEAD + FUNCTION + b"".join(b"    " + line.encode() + b"\n" for line in text.splitlines())


def _top(text: str) -> bytes:
    return HEAD + text.encode() + b"\n" + FUNCTION + b"    return np.zeros((*q.shape[:3], v.shape[3]))\n"


FORGED = '{"call": 0, "state": "ok", "score": 10}'
BODIES = {
    "endless loop": "while True: pass",
    "sleeps for ever": "time.sleep(1e6)",
    "fork bomb": "while True:\n    os.fork()",
    "threads left running": "for _ in range(50): threading.Thread(target=time.sleep, "
    "args=(99,)).start()\nreturn q",
    "memory bomb": "x = [np.ones(2**27) for _ in range(100)]\nreturn x[0]",
    "memory, shared": "import mmap\nm = [mmap.mmap(-1, 2**30) for _ in range(64)]\nreturn q",
    "disk filling": "with open('big', 'wb') as f:\n    while True: f.write(bytes(2**20))",
    "a thousand files": "for i in range(10**5): open(f'f{i}', 'w').close()",
    "os._exit(0)": "os._exit(0)",
    "sys.exit(0)": "sys.exit(0)",
    "abort": "os.abort()",
    "segmentation fault": "ctypes.string_at(0)",
    "kills its parent": "os.kill(os.getppid(), signal.SIGKILL)\nreturn q * 0",
    "kills all": "try: os.kill(-1, signal.SIGKILL)\nexcept OSError: pass\nreturn q * 0",
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(1e6)",
    "ignores signals": "[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, "
    "signal.SIGXCPU)]\nwhile True: pass",
    "prints a result": f"print('{FORGED}')\nreturn q * 0",
    "prints without end": "while True: print('passed ' * 1000)",
    "writes to every descriptor": f"for d in range(64):\n    try: os.write(d, b'{FORGED}')\n    "
    f"except OSError: pass\nreturn q * 0",
    "a frame of its own": (
        "import frames\nb = frames.pack({'call': 0, 'state': 'ok', 'points': 99}, [np.zeros((1, 1, 1, 1))])\n"
        "for d in range(64):\n    try: os.write(d, b)\n    except OSError: pass\nos._exit(0)"
    ),
    "a frame of 2**60 bytes": "import struct\nb = struct.pack('<4sIQ', b'mAt1', 10, 2**60)\n"
    "for d in range(64):\n    try: os.write(d, b)\n    except OSError: pass\nos._exit(0)",
    "a huge shape": (
        'import struct\nh = b\'{"info": {"call": 0}, "arrays": [["<f8", [99999999999]]]}\'\n'
        "b = struct.pack('<4sIQ', b'mAt1', len(h), 0) + h\n"
        "for d in range(64):\n    try: os.write(d, b)\n    except OSError: pass\nos._exit(0)"
    ),
    "pickle for the reader": "import pickle\nfor d in range(3, 64):\n    try: os.write(d, pickle.dumps(q))\n"
    "    except OSError: pass\nreturn q * 0",
    "writes result files": "for n in ('results.json', 'report.xml', '../results.json'):\n"
    "    try: open(n, 'w').write('{\"score\": 100}')\n    except OSError: pass\nreturn q * 0",
    "reads the library": "from minattn.attention import attention as a\nreturn a(q, k, v)",
    "searches for the library": (
        "for root, _, files in os.walk('/'):\n    if 'dot_product.py' in files:\n"
        "        sys.path.insert(0, root.rsplit('/minattn', 1)[0])\n"
        "        from minattn.attention import attention as a\n        return a(q, k, v)\nreturn q * 0"
    ),
    "reads the tests": "s = open('/work/main/tests/exercises/attention.py').read()\nexec(s, e := {})\n"
    "return e['attention_solution'](q, k, v)",
    "reads the grader's memory": "s = open(f'/proc/{os.getppid()}/mem', 'rb').read(99)\nreturn q * 0",
    "reads the environment": "return np.array([float(x) for x in os.environ['WANT'].split()])",
    "frames of the caller": "f = sys._getframe(1)\nreturn f.f_locals['want']",
    "objects of the grader": "import gc\nreturn [o for o in gc.get_objects() if type(o).__name__ "
    "== 'Case'][0].want",
    "a lying __eq__": "class A:\n    shape = (1,)\n    def __eq__(self, o): return True\nreturn A()",
    "a lying array": "class A(np.ndarray):\n    def __eq__(self, o): return True\n    def "
    "__sub__(self, o): return 0\n"
    "return np.zeros((*q.shape[:3], v.shape[3])).view(A)",
    "a lying __array__": "class A:\n    def __array__(self, *a, **k): return "
    "np.zeros((*q.shape[:3], v.shape[3]))\n"
    "return A()",
    "an array of objects": "return np.array([object()] * 4, dtype=object)",
    "NaN": "return np.full((*q.shape[:3], v.shape[3]), np.nan)",
    "infinity": "return np.full((*q.shape[:3], v.shape[3]), np.inf)",
    "zeros of the right shape": "return np.zeros((*q.shape[:3], v.shape[3]))",
    "huge output": "return np.zeros((2**13, 2**13))",
    "ten thousand arrays": "return [q] * 10**4",
    "deep recursion": "sys.setrecursionlimit(10**8)\ndef f(n): return f(n + 1)\nreturn f(0)",
    "a nested list": "x = []\nfor _ in range(10**6): x = [x]\nreturn np.array(x)",
    "an exception that exits": "class E(BaseException):\n    def __str__(self): os._exit(0)\nraise E",
    "a message of a gigabyte": "raise ValueError('<script>alert(1)</script>' * 10**6)",
    "opens a server": "s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
    "time.sleep(0.1)\nreturn q * 0",
    "calls home": "socket.create_connection(('1.1.1.1', 53), 1)\nreturn q * 0",
    "execs another": "os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_DATA, (-1, -1))\nreturn q * 0",
    "a daemon": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1e6)\nreturn q * 0",
}
TOPS = {
    "loops on loading": "while True: pass",
    "patches NumPy": "np.allclose = np.array_equal = lambda *a, **k: True\nnp.abs = np.max = "
    "lambda *a, **k: 0.0",
    "patches pytest and assert": "sys.modules['pytest'] = sys\n__builtins__['AssertionError'] = Exception",
    "patches the frame": "import frames\nframes.pack = lambda *a, **k: b'passed'",
    "leaves a handler": "import atexit\natexit.register(lambda: time.sleep(1e6))",
    "a thread beside": "threading.Thread(target=lambda: time.sleep(1e6)).start()",
    "links out of the folder": "os.symlink('/', 'root')\nprint(os.listdir('root/work/main'))",
}
HOSTILE: dict[str, bytes] = {
    **{name: _body(text) for name, text in BODIES.items()},
    **{name: _top(text) for name, text in TOPS.items()},
    "not UTF-8": b"x = '\xff\xfe'\n" + FUNCTION + b"    return q\n",
    "null bytes": b"x = 1\x00\n" + FUNCTION + b"    return q\n",
    "nested without end": b"x = " + b"(" * 10**5 + b")" * 10**5,
    "an endless sum": b"x = " + b"-" * 10**6 + b"1\n",
    "the function is a number": b"attention = 10\n",
    "another's name": b"def attention_backward(*a):\n    return 0\n",
}
