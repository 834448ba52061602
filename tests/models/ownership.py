"""Exhaustive model of task ownership by Kafka transactions: one task, its checkpoint partition and its changelog partition.

Every container has an incarnation and a transactional id of its own. All may start, pause and resume at any time:
  init -> read -> append owner record -> read back, fence and tombstone the lower -> high watermarks, wait for the LSO
  -> restore -> commit a row and a checkpoint -> flush the store when there is nothing to write.
A commit returns before its markers are written; a partition's LSO stays at its first entry without a marker; fencing an id
aborts its open transaction and returns when the markers are written; a transaction that holds nothing is completed by its
client alone. Owner records are plain (not transactional).
Every restore and flush ends with an offsets row on the container's disk: the changelog's end, read inside the transaction.
Safety, checked at every step:
  1. no transaction of a lower incarnation commits after a higher one took its high watermarks;
  2. what a restore sees is whole, unless the restorer is fenced already and can never commit: the committed checkpoints and
     the committed changelog rows below its watermarks are of the same transactions;
  3. what is on a disk may be used: it has every committed changelog row below its offsets row.
Variants leave one step out and show what it is for; the tests run them all, and tests/explore.rs of container/core runs
the start order itself through the same interleavings.  usage: ownership.py
"""
from collections import deque

INIT, READ, APPEND, BACK, FENCE, TOMB, MARK, WAIT, RUN0, RUN1, ENDS, COMMIT, IDLE_ENDS, IDLE_ROW, IDLE_COMMIT, DEAD, DONE = range(17)


def explore(n, read_back=True, fence=True, plain_owner=True, stop_only=(), proof=True, idle=(0, 1, 2)):
    # per container: (pc, ids still to fence, watermarks, changelog end read, disk: rows and offset)
    # per id: epoch 0 none / 1 owner's / 2 fenced, txn None | o | c | a
    start = (tuple((INIT, (), None, None, ((), 0)) for _ in range(n)), (0,) * n, (None,) * n, ((), ()))
    todo = deque([start])
    parent = {start: (None, "start")}

    def trace(s, last):
        out = [last]
        while parent[s][0] is not None:
            out.append(parent[s][1])
            s = parent[s][0]
        return "; ".join(reversed(out))

    def put(t, i, v):
        return t[:i] + (v,) + t[i + 1:]

    while todo:
        s = todo.popleft()
        cs, ep, tx, log = s
        for i, (_, _, _, _, (rows, offset)) in enumerate(cs):
            missing = {j for k, j, st in log[1][:offset] if k == "row" and st == "c"} - set(rows)
            if missing:
                return len(parent), trace(s, f"the disk of {i} lacks rows of {missing} below its offsets row {offset}")

        def push(what, cs2=cs, ep2=ep, tx2=tx, log2=log):
            ns = (cs2, ep2, tx2, log2)
            if ns not in parent:
                parent[ns] = (s, what)
                todo.append(ns)

        def lso(p):
            return next((k for k, e in enumerate(log[p]) if e[2] == "o"), len(log[p]))

        def owners():
            live, end = set(), len(log[0]) if plain_owner else lso(0)
            for kind, j, st in log[0][:end]:
                if kind == "own" and (plain_owner or st == "c"):
                    live.add(j)
                if kind == "tomb":
                    live.discard(j)
            return live

        # the coordinator writes markers, partition by partition, in any order
        for i in range(n):
            if tx[i] in ("c", "a"):
                open_parts = [p for p in (0, 1) if any(e[1] == i and e[2] == "o" for e in log[p])]
                for p in open_parts:
                    marked = tuple((k, j, tx[i] if (j == i and st == "o") else st) for k, j, st in log[p])
                    push(f"marker {i}/{p}", log2=put(log, p, marked), tx2=tx if len(open_parts) > 1 else put(tx, i, None))
        for i, (pc, tf, wm, end, disk) in enumerate(cs):
            def go(pc2, what, tf2=(), wm2=wm, end2=None, disk2=disk, **kw):
                push(f"{i}: {what}", cs2=put(cs, i, (pc2, tf2, wm2, end2, disk2)), **kw)

            def write(p, pc2, what, end2=None):
                if ep[i] != 1:
                    go(DEAD, "fenced at produce")
                elif tx[i] in (None, "o"):
                    go(pc2, what, end2=end2, log2=put(log, p, log[p] + (("row", i, "o"),)), tx2=put(tx, i, "o"))

            def late():
                higher = range(i + 1, n)
                return any(cs[j][2] is not None or (j in stop_only and cs[j][0] == DONE) for j in higher)

            if pc == INIT:
                go(READ, "init", ep2=put(ep, i, 1))
            elif pc == READ:
                go(DEAD if any(j > i for j in owners()) else APPEND, "read")
            elif pc == APPEND:
                after = BACK if read_back else MARK
                if plain_owner:
                    go(after, "append owner", log2=put(log, 0, log[0] + (("own", i, "p"),)))
                elif ep[i] != 1:
                    go(DEAD, "fenced")
                elif tx[i] is None:
                    go(after, "append owner in a transaction, commit", log2=put(log, 0, log[0] + (("own", i, "o"),)), tx2=put(tx, i, "c"))
            elif pc == BACK:
                if any(j > i for j in owners()):
                    go(DEAD, "read back: higher, exit")
                else:
                    low = tuple(sorted(j for j in owners() if j < i)) if fence else ()
                    go(FENCE if low else MARK, f"read back, lower {low}", tf2=low)
            elif pc == FENCE:
                t = tf[0]
                if ep[t] == 1 and tx[t] != "c":
                    go(FENCE, f"fence {t}", tf2=tf, ep2=put(ep, t, 2), tx2=put(tx, t, "a" if tx[t] == "o" else None))
                elif tx[t] is None:  # else: wait for the markers
                    go(TOMB, f"fenced {t}", tf2=tf)
            elif pc == TOMB:
                go(FENCE if tf[1:] else MARK, f"tombstone {tf[0]}", tf2=tf[1:], log2=put(log, 0, log[0] + (("tomb", tf[0], "p"),)))
            elif pc == MARK:
                if i in stop_only:
                    go(DONE, "the AM stops the job here")
                else:
                    go(WAIT, "high watermarks", wm2=(len(log[0]), len(log[1])))
            elif pc == WAIT:
                if lso(0) >= wm[0] and lso(1) >= wm[1]:
                    cp = {j for k, j, st in log[0][:wm[0]] if k == "row" and st == "c"}
                    rows = {j for k, j, st in log[1][:wm[1]] if k == "row" and st == "c"}
                    if cp != rows and ep[i] == 1:
                        return len(parent), trace(s, f"{i}: restores checkpoints {cp} but rows {rows}")
                    go(RUN0, "restore", disk2=(tuple(sorted(rows)), wm[1]))
            elif pc == RUN0:
                write(1, RUN1, "write a row")
            elif pc == RUN1:
                write(0, ENDS, "write a checkpoint")
            elif pc == ENDS:
                go(COMMIT, "read the changelog's end", end2=len(log[1]))
            elif pc == COMMIT:
                if ep[i] != 1 or tx[i] != "o":
                    go(DEAD, "fenced at commit")
                else:
                    if late():
                        return len(parent), trace(s, f"{i}: COMMITS after a higher restore or a stop")
                    go(IDLE_ENDS if i in idle else DONE, "commit, flush the store", tx2=put(tx, i, "c"), disk2=(tuple(sorted({*disk[0], i})), end))
            elif pc == IDLE_ENDS:
                go(IDLE_ROW if proof else IDLE_COMMIT, "read the changelog's end with nothing to write", end2=len(log[1]))
            elif pc == IDLE_ROW:
                write(0, IDLE_COMMIT, "write the checkpoint again", end2=end)
            elif pc == IDLE_COMMIT:
                if not proof:  # librdkafka asks nobody
                    go(DONE, "commit nothing, flush the store", disk2=(disk[0], end))
                elif ep[i] != 1 or tx[i] != "o":
                    go(DEAD, "fenced at commit")
                else:
                    if late():
                        return len(parent), trace(s, f"{i}: COMMITS after a higher restore or a stop")
                    go(DONE, "commit, flush the store", tx2=put(tx, i, "c"), disk2=(disk[0], end))
    return len(parent), None


if __name__ == "__main__":
    for name, n, kw in [
        ("the protocol, 2 incarnations", 2, {}),
        # With every one flushing an idle store there are 360,363 states: safe as well, in ten seconds more.
        ("the protocol, 3 incarnations", 3, dict(idle=(0,))),
        ("a job stopped by its AM under a fresh incarnation", 3, dict(stop_only=(2,), idle=(0,))),
        ("without reading back", 2, dict(read_back=False)),
        ("without fencing the lower", 2, dict(fence=False)),
        ("owner record inside a transaction", 3, dict(plain_owner=False)),
        ("a position from a transaction that holds nothing", 2, dict(proof=False)),
    ]:
        states, bad = explore(n, **kw)
        print(f"{'safe  ' if bad is None else 'UNSAFE'} {states:>8} states  {name}")
        if bad:
            print(f"         {bad}")
