# Processes that write one database at once, in each mode of its journal, and one that reads meanwhile.
import multiprocessing, os, sqlite3, sys

SIZE = int(os.environ['SIZE'])
WRITERS, TURNS = 4, 10 * SIZE


def connect(name):
    db = sqlite3.connect(name, timeout=100, isolation_level=None)
    db.execute('pragma synchronous=normal')
    return db


def write(name, writer):
    db = connect(name)
    for turn in range(TURNS):
        db.execute('begin immediate')
        (total,) = db.execute('select total from sum').fetchone()
        db.execute('insert into log values (?, ?, ?)', (writer, turn, 'x' * (turn * 37 % 3000)))
        db.execute('update sum set total = ?', (total + 1,))
        db.execute('commit')


def read(name, done):
    db = connect(name)
    last = 0
    while not done.wait(0.01):
        db.execute('begin')
        (total,) = db.execute('select total from sum').fetchone()
        (count,) = db.execute('select count(*) from log').fetchone()
        db.execute('commit')
        assert total == count >= last, (total, count, last)
        last = total


for mode in ('delete', 'truncate', 'persist', 'wal'):
    name = mode + '.db'
    db = connect(name)
    assert db.execute('pragma journal_mode=' + mode).fetchone()[0] == mode
    db.execute('create table log (writer, turn, text)')
    db.execute('create table sum (total)')
    db.execute('insert into sum values (0)')
    done = multiprocessing.Event()
    reader = multiprocessing.Process(target=read, args=(name, done))
    writers = [multiprocessing.Process(target=write, args=(name, n)) for n in range(WRITERS)]
    for process in writers + [reader]:
        process.start()
    for process in writers:
        process.join()
    done.set()
    reader.join()
    assert all(process.exitcode == 0 for process in writers + [reader])
    assert db.execute('select total from sum').fetchone() == (WRITERS * TURNS,)
    assert db.execute('select count(*), count(distinct writer * 100000 + turn) from log').fetchone() \
        == (WRITERS * TURNS, WRITERS * TURNS)
    assert db.execute('pragma integrity_check').fetchone() == ('ok',)
    db.execute('vacuum')
    db.close()
    assert not os.path.exists(name + '-wal') and not os.path.exists(name + '-shm')
