"""Which accesses are in order: a clock of instructions, and stamps of the last accesses to every unit of memory.

Threads of a CTA are in order across a barrier, threads of a warp across a warp sync too. Threads of two CTAs are in
order when the first published (wrote, perhaps a barrier, fence, atomic) and the second acquired (atomic on the same
place, fence, perhaps a barrier). What one instruction writes to one place from several threads must be one value."""

import numpy as np

THREAD_BITS = 24
THREAD = (1 << THREAD_BITS) - 1
IN_FLIGHT = 1 << 62  # set in the write stamp of a unit that an asynchronous copy is writing

FOREVER = 1 << 38
ONE, WARP, CTA, GRID = range(4)  # who shares the last reads of a unit


class Stamps:
    """Per unit of memory: time and thread of the last write and read, and how far the unordered readers spread."""

    def __init__(self, units: int):
        self.write = np.zeros(units, np.int64)
        self.read = np.zeros(units, np.int64)
        self.crowd = np.zeros(units, np.int8)


class Order:
    """What each thread of the grid knows of the others: up to when their accesses come before its next one."""

    def __init__(self, ctas: int, threads: int):
        total = ctas * threads
        self.threads = threads  # per CTA, a multiple of 32
        self.clock = 1
        self.lines = [0, 0]  # clock -> line of the PTX
        self.warp_synced = np.zeros(total, np.int64)
        self.cta_synced = np.zeros(total, np.int64)
        self.fenced = np.zeros(total, np.int64)
        self.fence_reach = np.zeros(total, np.int64)  # other threads' accesses the last fence covered
        self.published: dict[int, np.ndarray] = {}  # place of an atomic -> [threads of the grid], times
        self.seen: dict[int, np.ndarray] = {}  # thread -> what its atomics saw, until a fence makes it count
        self.acquired: dict[int, np.ndarray] = {}  # thread -> [threads of the grid], times

    def tick(self, line: int) -> int:
        self.clock += 1
        self.lines.append(line)
        return self.clock

    def barrier(self, threads: np.ndarray) -> None:
        self.cta_synced[threads] = self.warp_synced[threads] = self.clock
        if self.acquired:
            for cta in np.unique(threads // self.threads):
                members = range(cta * self.threads, (cta + 1) * self.threads)
                known = [self.acquired[t] for t in members if t in self.acquired]
                if known:
                    shared = np.maximum.reduce(known)
                    self.acquired.update(dict.fromkeys(members, shared))

    def warp_sync(self, threads: np.ndarray) -> None:
        self.warp_synced[threads] = self.clock

    def fence(self, threads: np.ndarray) -> None:
        self.fenced[threads] = self.clock
        self.fence_reach[threads] = self.cta_synced[threads]
        for thread in threads.tolist() if self.seen else ():
            if thread in self.seen:
                before = self.acquired.get(thread, 0)
                self.acquired[thread] = np.maximum(before, self.seen.pop(thread))

    def atomic(self, thread: int, place: int) -> None:
        """Publish what this thread's fences cover, then see what others published here."""
        cta = thread // self.threads
        members = slice(cta * self.threads, (cta + 1) * self.threads)
        times = self.acquired.get(thread, np.zeros_like(self.fenced)).copy()
        own = self.fenced[members]
        times[members] = np.maximum(np.where(own <= self.cta_synced[thread], own, 0), self.fence_reach[thread])
        times[thread] = self.fenced[thread]
        before = self.published.get(place, 0)
        self.seen[thread] = np.maximum(before, self.seen.get(thread, 0)) + np.zeros_like(self.fenced)
        self.published[place] = np.maximum(before, times)

    def stamp(self, threads: np.ndarray) -> np.ndarray:
        return (self.clock << THREAD_BITS) | threads

    def _before(self, stamps: np.ndarray, crowd: np.ndarray | int, me: np.ndarray) -> np.ndarray:
        """Whether the accesses with these stamps come before whatever the threads `me` do now."""
        time, who = stamps >> THREAD_BITS, stamps & THREAD
        same_warp = (who >> 5 == me >> 5) & (crowd <= WARP)
        same_cta = (who // self.threads == me // self.threads) & (crowd <= CTA)
        bound = np.where(same_warp, self.warp_synced[me], np.where(same_cta, self.cta_synced[me], 0))
        for known, threads in self._knowledge(me) if self.acquired and not same_cta.all() else ():
            cta = threads[0] // self.threads * self.threads
            everyone = min(known[:cta].min(initial=FOREVER), known[cta + self.threads :].min(initial=FOREVER))
            foreign = np.isin(me, threads) & ~same_cta
            bound = np.where(foreign, np.where(crowd == GRID, everyone, known[who]), bound)
        return (time <= bound) | ((who == me) & (crowd == ONE))

    def _knowledge(self, me: np.ndarray) -> list[tuple[np.ndarray, list[int]]]:
        """What the threads `me` have acquired, and which of them share it."""
        shared: dict[int, tuple[np.ndarray, list[int]]] = {}
        for thread in np.unique(me).tolist():
            if thread in self.acquired:
                known = self.acquired[thread]
                shared.setdefault(id(known), (known, []))[1].append(thread)
        return list(shared.values())

    def _first_unordered(self, stamps: np.ndarray, crowd: np.ndarray | int, me: np.ndarray) -> tuple[int, int] | None:
        """Which access comes upon one that it is in no order with, and that one's stamp."""
        if not np.count_nonzero(stamps):
            return None
        before = self._before(stamps, crowd, me)
        if np.count_nonzero(before) == before.size:
            return None
        where, unit = np.argwhere(~before)[0]
        return int(where), int(stamps[where, unit])

    def read(self, stamps: Stamps, units: np.ndarray, me: np.ndarray) -> tuple[int, int] | None:
        """Record reads of units [accesses, units] by threads `me` [accesses, 1], or say which comes upon what write."""
        if (found := self._first_unordered(stamps.write[units], ONE, me)) is not None:
            return found
        old, crowd = stamps.read[units], np.int8(ONE)
        if np.count_nonzero(old):
            crowd, open_ = stamps.crowd[units], ~self._before(old, stamps.crowd[units], me)
            crowd = np.where(open_, np.maximum(crowd, self._spread(old & THREAD, me)), np.int8(ONE))
        now = self.stamp(me)
        stamps.read[units] = now
        stamps.crowd[units] = crowd
        last = stamps.read[units]
        if np.count_nonzero(last != now):
            crowd = np.maximum(self._spread(last & THREAD, me), crowd)
            for level in (WARP, CTA, GRID):
                which = crowd == level
                if np.count_nonzero(which):
                    stamps.crowd[units[which]] = level
        return None

    def write(self, stamps: Stamps, units: np.ndarray, me: np.ndarray) -> tuple[int, int] | None:
        """Record writes, or say which comes upon what read or write."""
        found = self._first_unordered(stamps.write[units], ONE, me)
        found = found or self._first_unordered(stamps.read[units], stamps.crowd[units], me)
        if found is None:
            stamps.write[units] = self.stamp(me)
        return found

    def _spread(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        far = np.where(a // self.threads != b // self.threads, GRID, np.where(a >> 5 != b >> 5, CTA, WARP))
        return np.where(a == b, ONE, far).astype(np.int8)
