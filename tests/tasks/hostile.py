"""Programs that try to get out of the sandbox. Each prints GOT for whatever it should not have had.

A program sees `W`, facts of the machine that an attacker may be assumed to know: a file with a secret and its folder, a
listener's port, names of sockets, processes to kill. `test_hostile.py` runs them and looks for traces outside.
"""

PRELUDE = """
import ctypes, errno, os, signal, socket, stat, subprocess, sys, threading, time
W = {world!r}
libc = ctypes.CDLL(None, use_errno=True)
ARM = os.uname().machine == 'aarch64'
def tries(name, attempt):
    try:
        print('GOT', name, attempt(), flush=True)
    except BaseException as error:
        print('no', name, repr(error)[:100], flush=True)
def call(x86, arm, *args):
    result = libc.syscall(ctypes.c_long(arm if ARM else x86), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), 'call')
    return result
def read(path):
    with open(path, 'rb') as file:
        return file.read(4096)
def write(path, mode='wb'):
    with open(path, mode) as file:
        return file.write(b'owned')
"""

FILES = {
    "write outside": """
for folder in (W['folder'], '/', '/usr', '/etc', '/usr/local/bin', '/var/tmp', '/root', '/home', '/dev'):
    tries(folder, lambda: write(folder + '/owned'))
tries('the secret', lambda: write(W['secret']))
""",
    "change the system": """
for path in ('/usr/bin/env', '/usr/lib/os-release', '/etc/passwd', sys.executable, os.__file__):
    tries('append ' + path, lambda: write(path, 'ab'))
    tries('chmod ' + path, lambda: os.chmod(path, 0o777))
    tries('times ' + path, lambda: os.utime(path, (0, 0)))
    tries('rename ' + path, lambda: os.rename(path, path + '.owned'))
""",
    "delete files": """
import shutil
tries('unlink', lambda: os.unlink(W['secret']))
tries('rmtree', lambda: shutil.rmtree(W['folder']))
tries('system', lambda: os.unlink('/usr/lib/os-release'))
tries('interpreter', lambda: os.unlink(os.__file__))
subprocess.run(['/bin/rm', '-rf', '--no-preserve-root', W['folder'], '/usr/bin'], stderr=subprocess.DEVNULL)
""",
    "read the home folder": """
for path in (W['secret'], os.path.expanduser('~root/.bashrc'), '/root/.profile', '/root/.ssh/id_rsa'):
    tries(path, lambda: read(path))
tries('home', lambda: os.listdir('/home')[0])
print(os.listdir('/'), os.listdir('/tmp'))
""",
    "read passwords": """
for path in ('/etc/shadow', '/etc/gshadow', '/etc/ssh/ssh_host_rsa_key', '/etc/hostname', '/etc/hosts'):
    tries(path, lambda: read(path))
if os.path.exists('/etc/passwd'):
    print(read('/etc/passwd'))
""",
    "symbolic and hard links": """
os.symlink(W['secret'], 'link')
tries('read', lambda: read('link'))
tries('write', lambda: write('link'))
os.symlink('/' + '../' * 20 + W['secret'].lstrip('/'), 'up')
tries('read up', lambda: read('up'))
tries('hard link', lambda: os.link('/usr/bin/env', 'hard'))
""",
    "roots and folders of other processes": """
for process in ('1', 'self', 'thread-self', str(os.getppid()), str(W['parent'])):
    for way in ('root', 'cwd', 'task/' + process + '/root'):
        tries(process + way, lambda: read(f"/proc/{process}/{way}{W['secret']}"))
        tries(process + way, lambda: os.listdir(f"/proc/{process}/{way}{W['folder']}"))
""",
    "devices": """
for name in ('mem', 'kmem', 'kmsg', 'port', 'sda', 'vda', 'nvme0n1', 'tty', 'console', 'ptmx', 'fuse', 'kvm', 'vsock',
             'net/tun', 'loop-control', 'uinput', 'snapshot'):
    tries(name, lambda: os.open('/dev/' + name, os.O_RDWR))
def made(kind, number):
    os.mknod('node', kind | 0o666, number)
    try:
        return os.open('node', os.O_RDWR)
    finally:
        os.unlink('node')
tries('disk', lambda: made(stat.S_IFBLK, os.makedev(254, 0)))
tries('memory', lambda: made(stat.S_IFCHR, os.makedev(1, 1)))
""",
    "inherited files": """
for number in range(3, 4096):
    try:
        os.fstat(number)
    except OSError:
        continue
    tries(number, lambda: os.pread(number, 100, 0))
""",
    "files by handle": """
handle = ctypes.create_string_buffer(bytes([8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]))
place = os.open('/usr', os.O_RDONLY)
tries('root by handle', lambda: call(304, 265, place, handle, 0))
""",
    "chroot": """
os.mkdir('jail')
outside = os.open('.', os.O_RDONLY)
tries('chroot', lambda: os.chroot('jail'))
os.fchdir(outside)
for _ in range(50):
    os.chdir('..')
tries('read', lambda: read(W['secret'].lstrip('/')))
""",
    "mounts": """
tries('tmpfs', lambda: call(165, 40, b'none', b'/tmp', b'tmpfs', 0, 0))
tries('read-write', lambda: call(165, 40, b'none', b'/', b'', 32 | 4096, 0))
tries('read-write /usr', lambda: call(165, 40, b'none', b'/usr', b'', 32 | 4096, 0))
tries('umount', lambda: call(166, 39, b'/proc', 2))
tries('pivot_root', lambda: call(155, 41, b'.', b'.'))
tries('open_tree', lambda: call(428, 428, -100, b'/', 1))
tries('fsopen', lambda: call(430, 430, b'tmpfs', 0))
tries('mount_setattr', lambda: call(442, 442, -100, b'/', 0, 0, 0))
tries('write', lambda: write('/owned'))
""",
    "kernel settings": """
for path in ('/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sysrq-trigger', '/proc/self/uid_map',
             '/proc/sys/vm/overcommit_memory', '/sys/kernel/uevent_helper', '/sys/fs/cgroup/cgroup.procs',
             '/proc/1/oom_score_adj', '/proc/self/oom_score_adj'):
    tries(path, lambda: write(path))
""",
    "the interpreter by its own process": """
tries('own', lambda: os.open('/proc/self/exe', os.O_WRONLY))
tries('first', lambda: os.open('/proc/1/exe', os.O_WRONLY))
""",
}

TALK = {
    "environment": """
print(dict(os.environ))
for process in ('1', 'self', str(os.getppid()), str(W['parent']), str(W['victim'])):
    try:
        print(read(f'/proc/{process}/environ'))
    except OSError:
        pass
""",
    "tcp": """
def connect(host):
    with socket.create_connection((host, W['port']), timeout=1) as there:
        there.send(b'out')
for host in ('127.0.0.1', '::1', 'localhost', '0.0.0.0'):
    tries(host, lambda: connect(host))
tries('resolve', lambda: socket.getaddrinfo('example.com', 80))
""",
    "udp": """
tries('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'out', ('127.0.0.1', W['port'])))
""",
    "abstract socket": """
def connect(name):
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(name)
        there.send(b'out')
tries('abstract', lambda: connect(chr(0) + W['abstract']))
tries('path', lambda: connect(W['socket']))
for name in ('/run/docker.sock', '/var/run/dbus/system_bus_socket', '/run/systemd/private'):
    tries(name, lambda: connect(name))
""",
    "other families": """
for family, kind, protocol in ((16, 3, 0), (17, 3, 3), (38, 5, 0), (40, 1, 0), (2, 3, 1), (10, 1, 0), (31, 3, 0),
                               (44, 3, 0)):
    tries(family, lambda: socket.socket(family, kind, protocol))
    tries(f'pair {family}', lambda: socket.socketpair(family, kind))
""",
    "a server": """
with socket.socket() as server:
    server.bind(('0.0.0.0', W['free']))
    server.listen()
    print('GOT a server', flush=True)
    time.sleep(1)
""",
    "terminal input": """
import fcntl
for number in range(3):
    tries(number, lambda: fcntl.ioctl(number, 0x5412, b'x'))
tries('controlling', lambda: os.open('/dev/tty', os.O_RDWR))
""",
    "keys": """
tries('add_key', lambda: call(248, 217, b'user', b'zifio', b'x', 1, -3))
tries('keyctl', lambda: call(250, 219, 0, -3, 0))
tries('request_key', lambda: call(249, 218, b'user', b'zifio', 0, -3))
""",
}

POWER = {
    "kill the parent": """
for process in (os.getppid(), W['parent'], W['victim'], 1, -1):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        try:
            os.kill(process, number) if process != -1 or number != signal.SIGSTOP else None
        except OSError:
            pass
for process in range(2, 40000):
    if process != os.getpid():
        try:
            os.kill(process, signal.SIGKILL)
        except OSError:
            pass
""",
    "trace": """
room = ctypes.create_string_buffer(8)
for process in (1, os.getppid(), W['parent'], W['victim']):
    tries('attach', lambda: call(101, 117, 16, process, 0, 0))
    tries('seize', lambda: call(101, 117, 0x4206, process, 0, 0))
    for name in ('mem', 'maps', 'environ', 'fd/0', 'syscall', 'stack'):
        tries(f'{process} {name}', lambda: read(f'/proc/{process}/{name}') or 1 / 0)
    one = (ctypes.c_size_t * 2)(ctypes.addressof(room), 8)
    tries('read', lambda: call(310, 270, process, one, 1, one, 1, 0))
    tries('write', lambda: call(311, 271, process, one, 1, one, 1, 0))
    tries('kcmp', lambda: call(312, 272, process, process, 0, 0, 0))
    tries('its files', lambda: call(438, 438, os.pidfd_open(process), 0, 0))
""",
    "become root": """
for attempt in (os.setuid, os.setgid, os.seteuid, os.setegid):
    tries(attempt.__name__, lambda: attempt(0))
tries('setgroups', lambda: os.setgroups([0]))
tries('setresuid', lambda: os.setresuid(0, 0, 0))
everything = (ctypes.c_uint32 * 6)(*[0xffffffff] * 6)
tries('capset', lambda: call(126, 91, (ctypes.c_uint32 * 2)(0x20080522, 0), everything) or 1)
for tool in (['/usr/bin/su', '-c', 'id'], ['/usr/bin/sudo', '-n', 'id'], ['/usr/bin/passwd', '-d', 'root']):
    tries(tool, lambda: subprocess.run(tool, stdin=subprocess.DEVNULL, check=True))
""",
    "new namespaces": """
for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000):
    tries(f'unshare {flag:x}', lambda: libc.unshare(flag) and 1 / 0)
    tries(f'clone {flag:x}', lambda: call(56, 220, flag | 17, 0, 0, 0, 0) or os._exit(0))
    arguments = (ctypes.c_uint64 * 11)(flag, 0, 0, 0, 17)
    tries(f'clone3 {flag:x}', lambda: call(435, 435, arguments, 88) or os._exit(0))
    tries('setns', lambda: call(308, 268, os.open('/proc/1/ns/user', os.O_RDONLY), 0))
""",
    "forbidden calls": """
room = ctypes.create_string_buffer(256)
for name, x86, arm in (('bpf', 321, 280), ('perf', 298, 241), ('userfaultfd', 323, 282), ('init_module', 175, 105),
                       ('kexec', 246, 104), ('reboot', 169, 142), ('swapon', 167, 224), ('syslog', 103, 116),
                       ('acct', 163, 89), ('quotactl', 179, 60), ('fanotify', 300, 262), ('handle', 303, 264),
                       ('io_uring', 425, 425), ('io_uring_enter', 426, 426), ('memfd', 319, 279), ('secret', 447, 447),
                       ('shmget', 29, 194), ('msgget', 68, 186), ('semget', 64, 190), ('personality', 135, 92),
                       ('aio', 206, 0), ('hostname', 170, 161), ('a call of tomorrow', 600, 600)):
    tries(name, lambda: call(x86, arm, room, 1, room, 0, 0))
""",
    "io_uring": """
room = ctypes.create_string_buffer(256)
tries('io_uring', lambda: call(425, 425, 8, room))
""",
    "the clock": """
tries('clock', lambda: time.clock_settime(time.CLOCK_REALTIME, 0))
tries('time of day', lambda: call(164, 170, (ctypes.c_long * 2)(0, 0), 0))
tries('name', lambda: socket.sethostname('owned'))
""",
    "priority": """
tries('nice', lambda: os.nice(-20))
tries('real time', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)))
tries('priority', lambda: os.setpriority(os.PRIO_PROCESS, 1, -20))
""",
    "foreign calls": """
print(libc.syscall(ctypes.c_long(0x40000000 | 39)), 'GOT through x32')
""",
    "core dump": """
import resource
tries('limit', lambda: resource.setrlimit(resource.RLIMIT_CORE, (-1, -1)))
os.abort()
""",
}

GREED = {  # with the statuses that are all right
    "fork bomb": ("""
while True:
    try:
        os.fork()
    except OSError:
        pass
""", {"timeout", "processes", "memory"}),
    "fork bomb that hides": ("""
import resource
while True:
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
    except OSError:
        pass
""", {"ok", "timeout", "processes", "memory"}),
    "thread bomb": ("""
n = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        n += 1
except RuntimeError:
    print(n)
""", {"ok", "memory", "timeout"}),
    "memory bomb": ("held = []\nwhile True:\n    held.append(bytearray(1 << 24))\n", {"memory"}),
    "memory in many processes": ("""
for _ in range(8):
    if os.fork() == 0:
        held = b'x' * (40 << 20)
        time.sleep(60)
time.sleep(60)
""", {"memory"}),
    "memory that catches all": ("""
held = []
while True:
    try:
        held.append(bytearray(1 << 24))
    except BaseException:
        pass
""", {"timeout", "memory"}),
    "shared memory": ("""
import mmap
for number in range(100):
    room = mmap.mmap(-1, 32 << 20)
    room.write(b'x' * (32 << 20))
    if os.fork():
        time.sleep(60)
""", {"failed"}),
    "memory of a device": ("""
import mmap
room = mmap.mmap(os.open('/dev/zero', os.O_RDWR), 32 << 20)
print('GOT memory that nobody counts')
""", {"failed"}),
    "files in shared memory": ("""
for number in range(100):
    with open(f'/dev/shm/{number}', 'wb') as file:
        file.write(bytes(4 << 20))
print('GOT 400 MB')
""", {"failed", "memory"}),
    "huge file": ("""
with open('huge', 'wb') as file:
    file.seek(1 << 40)
    file.write(b'x')
print('GOT a terabyte')
""", {"failed"}),
    "many files": ("""
for number in range(10**6):
    open(f'{number}', 'w').close()
print('GOT a million files')
""", {"failed", "memory", "timeout"}),
    "many open files": ("""
held = [open('/dev/null') for _ in range(5000)]
print('GOT', len(held))
""", {"failed"}),
    "endless loop": ("while True: pass", {"timeout"}),
    "endless sleep": ("time.sleep(3600)", {"timeout"}),
    "endless regex": ("import re\nre.match('(a+)+b', 'a' * 64)", {"timeout"}),
    "signals ignored": ("""
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True: pass
""", {"timeout"}),
    "timers": ("""
signal.signal(signal.SIGALRM, lambda *_: None)
signal.signal(signal.SIGPROF, lambda *_: None)
signal.signal(signal.SIGXCPU, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
while True: pass
""", {"timeout"}),
    "stops itself": ("os.kill(os.getpid(), signal.SIGSTOP)", {"timeout"}),
    "limits raised": ("""
import resource
for name in ('AS', 'CPU', 'NPROC', 'FSIZE', 'NOFILE'):
    tries(name, lambda: resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (-1, -1)))
held = bytearray(1 << 30)
""", {"memory"}),
    "limits of the first process": ("""
import resource
try:
    resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))
    resource.prlimit(1, resource.RLIMIT_AS, (0, 0))
    resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))
except OSError:
    pass
while True:
    try:
        os.fork()
    except OSError:
        pass
""", {"timeout", "processes", "failed", "memory", "broken"}),
    "output flood": ("while True: os.write(1, b'x' * 65536)", {"output"}),
    "error flood": ("while True: os.write(2, b'x' * 65536)", {"output"}),
    "flood by a child": ("""
if os.fork() == 0:
    os.setsid()
    while True: os.write(1, b'x' * 65536)
time.sleep(60)
""", {"output"}),
    "closed streams": ("""
for number in range(256):
    try:
        os.close(number)
    except OSError:
        pass
while True: pass
""", {"timeout"}),
    "daemon": ("""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(256):
            try:
                os.close(number)
            except OSError:
                pass
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        time.sleep(3600)
    os._exit(0)
""", {"ok"}),
    "daemon by exec": ("""
subprocess.Popen(['/bin/sh', '-c', 'trap "" HUP TERM; sleep 3600 # ' + W['marker']], start_new_session=True)
""", {"ok"}),
}  # fmt: skip
