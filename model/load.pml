/*
 * load.pml: the loads of one key: acquire, fill, release, invalidate, set, and
 * Update's mark.
 *
 * A script is one atomic step, as in Redis. Between steps anything may happen to
 * a process: its message is late or lost, its lease ends because it was stopped,
 * it dies, an answer does not come, Redis loses all it had. How often is bounded
 * by FAULTS, for all kinds together; only messages may be lost without limit.
 *
 * There is no time here: what has an end may end at any moment, by a step of
 * Clock. So what holds here holds for every TTL.
 *
 * A comment that begins with the name of a file quotes it, and model_test.go
 * checks that the line is still there.
 *
 * The values are versions of the source, and all versions are ghosts:
 *
 *   one fetch    no lease begins while another is valid
 *   not stored   what is stored is never older than the last write that completed
 *   not left     nor, once the mark of a writer who died has ended, than his write
 *   not returned nor does a Get return what is older than the last write that had
 *                completed when it began; also not if it joined another's load
 *   no wait      (LIVE) a process that waits does not wait for ever
 */
#ifndef N
#define N 2 /* processes that Get */
#endif
#ifndef GETS
#define GETS 2 /* of each, one after another */
#endif
#ifndef W
#define W 1 /* writers, each of one Delete, Set or Update */
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef MAIL
#define MAIL 1 /* messages on their way to a process; a new one may take the place of an old one */
#endif
#ifndef JOINS
#define JOINS 0 /* callers who join a load of process 0 */
#endif

#define NONE 255 /* no owner */
#define DEAD 254 /* an owner who will never come back: he died, or does not know that he has the lease */
#define ANY 253  /* protocol.AnyFence */

mtype = { V, R, E };

byte source = 1; /* version there */

/* The value: redis key v. */
byte val = 0, valf = 0; /* version, 0 if there is none, and fence in its envelope */
bool brief = false;     /* it ends with the last mark */

/* The meta: redis key m. */
byte owner = NONE, fence = 0;
bool tainted = false, failed = false;
bool waits[N];

bool marked[W]; /* the marks: redis key u */

byte now = 0; /* the server's clock, as far as fences need it */
chan mail[N] = [MAIL] of { mtype, byte, byte }; /* kind, fence, version: on their way */

byte completed = 0; /* the newest version whose Delete, Set or Update has completed */
byte least = 0;     /* what is stored may not be older than this */
bool valid[N];      /* has a lease */
bool waiting[N];
bool dead[W];
bool lapsed[W];  /* its mark has ended while it was stopped, or was lost */
byte written[W]; /* by an Update whose mark had not; 0 before */
byte faults = FAULTS;

/* The load of process 0 that others may join: see internal/flight. */
bool open = false, came = false, joined = false, late = false;
byte since = 0; /* completed, when the last one came */
byte joins = JOINS;

#if W == 1
#define anyMark (marked[0])
#else
#define anyMark (marked[0] || marked[1])
#endif

#ifdef MUTANT_TAINT_ENDS
#define taint (anyMark)
#else
#define taint (tainted)
#endif

#define mine (owner == me && fence == lease)
#define fault faults > 0 -> faults--

inline rise(what, to) {
	if
	:: to > what -> what = to
	:: else
	fi
}

inline publish(i, kind, f, version) {
	/* notify.lua: local function notify(channel, message) */
	/* notify.lua: local sent = redis.pcall("PUBLISH", channel, message) */
	i = 0;
	do
	:: i < N ->
		if
		:: waits[i] && nfull(mail[i]) -> mail[i]!kind, f, version
		:: waits[i] && full(mail[i]) -> mail[i]?_, _, _; mail[i]!kind, f, version
		:: true /* lost */
		fi;
		waits[i] = false;
		i++
	:: else -> break
	od;
	i = 0
}

/* The meta's end; not that of a lease, which its holder may believe in. */
inline deleteMeta() {
	owner = NONE; fence = 0; tainted = false; failed = false
}

inline noWaiters(i) {
	i = 0;
	do
	:: i < N -> waits[i] = false; i++
	:: else -> break
	od;
	i = 0
}

/* A lease ends by right: not because its owner has ended it. */
inline revoke() {
	if
	:: owner < N -> valid[owner] = false
	:: else
	fi
}

inline deleteValue() {
	val = 0; valf = 0; brief = false
}

inline stored() {
	assert(val >= least)
}

/* flight.Flight.Advance: callers that have come so far may receive what is read from now on. */
inline advanceCutoff() {
	if
	:: me == 0 -> late = false
	:: else
	fi
}

inline closeFlight() {
	if
	:: me == 0 -> open = false
	:: else
	fi
}

proctype Process(byte me) {
	byte gets = 0, began = 0, got = 0, over = 0;
	byte lease = 0, found = 0; /* fence of our lease, and what was fetched under it */
	byte fenceOfWait = 0, f = 0, version = 0, i = 0;
	mtype kind;

next:
	skip; /* any time later */
	atomic {
		if
		:: gets == GETS -> goto end
		:: else -> gets++
		fi;
		began = completed;
		/* lookup.go: b, err := l.redis.Get(ctx, k.names, l.readLimit()) */
		if
		:: val != 0 -> got = val; goto done
#ifdef PASSOVER
		:: val != 0 -> over = valf /* it is old, or not usable */
#endif
		:: val == 0
		/* lookup.go: return lookup[V]{state: skipped}, nil */
		:: val != 0 /* it has not looked */
		fi;
		if
		:: me == 0 -> open = true; joined = false; late = came
		:: else
		fi
	};

acquire:
	atomic {
		/* load.go: r.flight.Advance() */
		advanceCutoff();
		if
		/* acquire.lua: return {"value", redis.call("GET", KEYS[1]), now_text} */
		/* acquire.lua: force = head == ARGV[7] */
		:: val != 0 && !(over != 0 && over == valf) -> waiting[me] = false; got = val; closeFlight(); goto done
		:: else
		fi;
		if
#ifdef MUTANT_SECOND_LEASE
		:: owner != NONE && false -> skip
#else
		:: owner != NONE -> /* it has one */
			/* acquire.lua: if redis.call("HLEN", KEYS[2]) < tonumber(ARGV[5]) then redis.pcall("HSET", KEYS[2], "w" .. ARGV[3], "1") end */
			waits[me] = true; /* a full Redis refuses that, which is as if its message were lost */
			/* acquire.lua: return {"wait", string.format("%.0f", last), left, now_text} */
			fenceOfWait = fence; waiting[me] = true; goto wait
#endif
		/* acquire.lua: return {"failed", redis.call("HGET", KEYS[2], "e"), left} */
		:: owner == NONE && failed -> waiting[me] = false; closeFlight(); goto done
		:: else
		fi;
		/* acquire.lua: if there > 0 then redis.call("UNLINK", KEYS[2]) end */
		/* acquire.lua: redis.call("HSET", KEYS[2], "o", ARGV[1], "f", new) */
		/* acquire.lua: redis.call("PEXPIRE", KEYS[2], ARGV[2]) */
		now++; fence = now; owner = me;
		i = 0;
		do
		:: i < N -> assert(i == me || !valid[i]); i++ /* one fetch */
		:: else -> break
		od;
		i = 0;
		/* acquire.lua: redis.call("HSET", KEYS[2], "u", "1") */
#ifndef MUTANT_UNTAINTED
		tainted = anyMark;
#endif
		if
		:: lease = fence; valid[me] = true
		:: fault; owner = DEAD; waiting[me] = false; closeFlight(); goto done /* the answer is lost for good */
		fi;
		waiting[me] = false;
		/* fetch.go: f := r.runFetch(limited, during, a.Fence) */
		advanceCutoff(); found = source; goto hold
	};

wait:
	if
	:: atomic { mail[me]?kind, f, version ->
		if
		/* internal/wake/slot.go: message, counts := s.newest, s.present && s.newest.Fence >= fence */
#ifndef MUTANT_OLD_MESSAGE
		:: f < fenceOfWait -> f = 0; version = 0; goto wait
		:: f >= fenceOfWait ->
#else
		:: true ->
#endif
			f = 0; fenceOfWait = 0;
			if
			:: kind == V -> goto hear
			:: kind == E -> version = 0; advanceCutoff(); closeFlight(); waiting[me] = false; goto done
			:: kind == R -> version = 0; goto acquire
			fi
		fi }
#ifndef MUTANT_NO_TIMER
	/* load.go: timer := time.NewTimer(r.recheckAfter(r.acquire.Left)) */
	:: atomic { true -> fenceOfWait = 0; goto acquire }
#endif
	fi;

hear:
	atomic {
		closeFlight();
		/* load.go: if !r.flight.HasLate() { */
		if
#ifndef MUTANT_HEAR_LATE
		:: me == 0 && joined && late ->
			/* load.go: seen, lookupErr := r.l.lookup(ctx, r.k) */
			if
			:: val == 0 -> version = 0; goto acquire
			:: val != 0 -> got = val; advanceCutoff()
			fi
#else
		:: me == 0 && joined && late -> got = version; advanceCutoff()
#endif
		:: else -> got = version
		fi;
		version = 0; waiting[me] = false; goto done
	};

hold:
	if
	:: atomic { fault; valid[me] = false; /* it dies */
		if
		:: mine -> owner = DEAD
		:: else
		fi;
		closeFlight(); came = came && !(joined && me == 0); joined = joined && me != 0; lease = 0; found = 0; goto end }
	:: atomic { !mine -> /* by a message, or since it could not be renewed */
		/* renew.lua: if read("HGET", KEYS[1], "o") == ARGV[1] then return redis.call("PEXPIRE", KEYS[1], ARGV[2]) end */
		/* fetch.go: return r.acquiring // a Delete, Set or Update has ended the lease */
		valid[me] = false; lease = 0; found = 0; over = 0; goto acquire }
	:: atomic { true -> goto release }
	/* fetch.go: r.flight.Close() */
#ifdef MUTANT_CLOSE_LATE
	:: atomic { true -> goto fill }
#else
	:: atomic { true -> closeFlight(); goto fill }
#endif
	fi;

fill:
	atomic {
		if
#ifndef MUTANT_FILL_UNOWNED
		/* fill.lua: if owner ~= ARGV[1] then */
		:: !mine ->
			/* fill.lua: if stored == ARGV[2] then return {"stored", 0} end */
			/* It was refused: who came before the fetch may have the value all the same. */
			valid[me] = false;
#ifdef MUTANT_REFUSED_TO_ALL
			advanceCutoff();
#endif
			got = found; goto done
		:: mine ->
#else
		:: true ->
#endif
			valid[me] = false;
			if
			/* fill.lua: ttl = "0" -- it was fetched during an Update */
			/* fill.lua: redis.call("UNLINK", value) */
			:: taint -> deleteValue()
			/* fill.lua: refused = redis.pcall("SET", value, ARGV[3] .. others, "PX", longest_ttl).err */
			:: !taint -> val = found; valf = lease; brief = false; stored()
			/* fill.lua: refused = "TRYAGAIN the value is on another node" */
			:: !taint /* so does a full Redis: what was there stays */
			fi;
			/* fill.lua: redis.call("UNLINK", meta) -- before the notifications: a waiter then finds the lease free */
			i = 0; deleteMeta();
			/* fill.lua: for _, process in ipairs(waiters) do notify(ARGV[5] .. process, message) end */
			publish(i, V, lease, found);
			got = found
		fi;
#ifdef MUTANT_CLOSE_LATE
		goto answered
#else
		/* fetch.go: r.flight.Advance() // the lease was ours until now, so the value is new enough for all callers */
		if
		:: advanceCutoff()
		:: true /* sent again, it found that another value had come: a loss, as far as we know */
		fi;
		goto done
#endif
	};

#ifdef MUTANT_CLOSE_LATE
answered:
	skip;
	atomic { advanceCutoff(); closeFlight(); goto done };
#endif

release:
	atomic {
		valid[me] = false;
		if
		/* release.lua: if owner ~= ARGV[1] then return 0 end */
		:: !mine
		:: mine ->
			/* release.lua: redis.call("UNLINK", KEYS[1]) */
			deleteMeta();
			/* release.lua: for _, process in ipairs(waiters) do notify(ARGV[2] .. process, ARGV[3]) end */
			if
			:: publish(i, R, lease, 0) /* all callers have left */
			/* release.lua: redis.call("HSET", KEYS[1], "e", ARGV[4], "f", fence or "0") */
			/* release.lua: redis.call("PEXPIRE", KEYS[1], ARGV[5]) */
			:: publish(i, E, lease, 0); failed = true /* the fetch failed; that may be forgotten at once */
			fi
		fi;
		advanceCutoff(); closeFlight(); goto done
	};

done:
	atomic {
		assert(got == 0 || got >= began); /* not returned */
		if
		:: me == 0 && joined ->
			assert(got == 0 || late || got >= since); /* nor to one who joined, or he looks again */
			came = false; joined = false; late = false; since = 0
		:: else
		fi;
		open = open && me != 0;
		got = 0; began = 0; over = 0; lease = 0; found = 0; fenceOfWait = 0; goto next
	};

end: /* what is still to come to it does not matter */
	atomic {
		waits[me] = false;
		do
		:: mail[me]?_, _, _
		:: empty(mail[me]) -> break
		od
	}
}

/* A caller of process 0 comes at any time. Its lookup takes a while, and then it joins
 * the load that runs. */
proctype Joiner() {
end:
	do
	/* loader.go: came := l.flights.Arrive() // before the lookup: a fetch that starts during it is new enough */
	:: atomic { joins > 0 && !came -> joins--; came = true; late = true; since = completed }
	:: atomic { came && !joined && open -> joined = true }
	od
}

inline invalidate(i) {
	/* invalidate.lua: local n = redis.call("UNLINK", value) */
	deleteValue();
#ifdef MUTANT_INVALIDATE_KEEPS_LEASE
	skip
#else
	/* invalidate.lua: redis.call("UNLINK", meta) */
	revoke(); deleteMeta();
	/* invalidate.lua: for _, process in ipairs(waiters) do notify(ARGV[1] .. process, ARGV[2]) end */
	publish(i, R, ANY, 0)
	/* To the holder, who in this model finds out by himself: */
	/* invalidate.lua: if holder then notify(ARGV[1] .. holder, ARGV[3] .. owner) end */
#endif
}

/* In a half moved slot, an invalidation is three scripts. What is not named in a
 * step is not in its reach. That its first and its last are the same matters for
 * the old value that a lease may go with, which is not in this model. */
inline endLease(i) {
	/* internal/protocol/tryagain.go: steps := []step{{invalidateMeta, meta}, {invalidateValue, value}, {invalidateMeta, meta}} */
	revoke(); deleteMeta();
	publish(i, R, ANY, 0)
}

inline invalidateApart(i) {
#ifndef MUTANT_VALUE_FIRST
	atomic { endLease(i) };
#endif
	atomic { deleteValue() };
	atomic { endLease(i) }
}

inline markEnds(w) {
	marked[w] = false; lapsed[w] = !dead[w];
	if
	:: brief && !anyMark -> deleteValue() /* with the last mark, or before */
	:: else
	fi;
	if
	:: dead[w] -> rise(least, written[w]); written[w] = 0
	:: else
	fi;
	assert(val == 0 || brief || val >= least) /* not left */
}

proctype Writer(byte me) {
	byte version = 0, i = 0;
	if
#ifndef UPDATES
	:: goto delete
	:: goto set
#endif
#if W > 1 && defined(UPDATES)
	:: me == 1 -> goto set
	:: me == 1 -> goto delete
#endif
	:: goto update
	fi;

delete:
	atomic { source++; version = source };
#ifdef APART
	invalidateApart(i);
	atomic { rise(completed, version); rise(least, version); assert(val == 0 || val >= least); goto end };
#endif
	/* loader.go: if err := l.redis.Invalidate(ctx, k.names); err != nil { */
	atomic { invalidate(i); rise(completed, version); rise(least, version); goto end };

	/* Nothing orders two writers who Set; here, who sets what is newest is the last. */
set:
	atomic {
		source++;
		/* set.lua: redis.call("SET", KEYS[1], envelope, "PX", ttl) */
		now++; val = source; valf = now;
		/* set.lua: if left > 0 then ttl = math.min(ttl, left) end */
#ifndef MUTANT_SET_LASTS
		brief = anyMark;
#endif
		completed = source; least = source;
#ifndef MUTANT_SET_KEEPS_LEASE
		/* set.lua: redis.call("UNLINK", KEYS[2]) */
		revoke(); deleteMeta();
		/* set.lua: for _, process in ipairs(waiters) do notify(ARGV[4] .. process, message) end */
		/* set.lua: message = "V" .. fence_bytes .. ARGV[5] .. envelope */
		publish(i, V, now, source);
		/* To the holder: */
		/* set.lua: if holder then notify(ARGV[4] .. holder, ARGV[7] .. owner) end */
#endif
		goto end
	};

update:
	/* update.go: markErr := l.redis.Mark(ctx, k.names, mark, l.opt.Lease) */
	/* invalidate.lua: redis.call("HSET", marks, ARGV[5], string.format("%.0f", now + lasts)) */
	/* invalidate.lua: if left < lasts or left > longest then redis.call("PEXPIRE", marks, left < lasts and lasts or longest) end */
#ifdef APART
#ifdef MUTANT_MARK_LAST
	invalidateApart(i);
	atomic { marked[me] = true; lapsed[me] = false };
#else
	/* internal/protocol/tryagain.go: steps = append([]step{marks}, steps...) */
	atomic { marked[me] = true; lapsed[me] = false };
	invalidateApart(i);
#endif
#else
#ifdef MUTANT_MARK_FORGETS_NOTHING
	atomic { marked[me] = true; lapsed[me] = false };
#else
	atomic { marked[me] = true; lapsed[me] = false; invalidate(i) };
#endif
#endif
marking:
	if
	/* invalidate.lua: if ends and ends > now then */
	:: atomic { !marked[me] -> marked[me] = true; lapsed[me] = false; /* renewed after it had ended */
#ifndef MUTANT_LATE_RENEWAL_KEEPS
		invalidate(i);
#endif
		goto marking }
	:: atomic { fault; dead[me] = true; goto end }
	/* update.go: return write(ctx) */
	:: atomic { source++; version = source;
		if
		:: !lapsed[me] -> written[me] = version
		:: else /* docs/fence.md has this limit */
		fi }
	fi;
	if
	:: atomic { fault; dead[me] = true; goto end }
#ifdef APART
	/* internal/protocol/tryagain.go: steps = append(steps, marks) */
	:: invalidateApart(i);
		atomic { marked[me] = false;
		rise(completed, version); rise(least, version); written[me] = 0;
		assert(val == 0 || val >= least) }
#else
	/* update.go: err := l.redis.Unmark(context.WithoutCancel(ctx), k.names, mark) */
	/* invalidate.lua: redis.call("HDEL", marks, ARGV[5]) */
	:: atomic {
#ifdef MUTANT_UNMARK_KEEPS
		marked[me] = false;
#else
#ifdef MUTANT_UNMARK_ALL
		marked[0] = false; marked[W - 1] = false; invalidate(i);
#else
		marked[me] = false; invalidate(i);
#endif
#endif
		rise(completed, version); rise(least, version); written[me] = 0;
		assert(val == 0 || val >= least) }
#endif
	fi;

end:
	skip
}

/* What ends by itself, and what is lost. */
proctype Clock() {
	byte i = 0;
end:
	do
#ifndef MUTANT_NO_END
	:: atomic { owner == DEAD -> deleteMeta(); noWaiters(i) }
#endif
	:: atomic { owner == NONE && failed -> failed = false }
	:: atomic { owner < N && faults > 0 -> faults--; revoke(); deleteMeta(); noWaiters(i) } /* its holder was stopped */
	:: atomic { dead[0] && (marked[0] || written[0] != 0) -> markEnds(0) }
	:: atomic { marked[0] && !dead[0] && faults > 0 -> faults--; markEnds(0) } /* so was its writer */
#if W > 1
	:: atomic { dead[1] && (marked[1] || written[1] != 0) -> markEnds(1) }
	:: atomic { marked[1] && !dead[1] && faults > 0 -> faults--; markEnds(1) }
#endif
	:: atomic { faults > 0 -> faults--; deleteValue(); revoke(); deleteMeta(); noWaiters(i); /* FLUSHALL, or a failover */
		marked[0] = false; marked[W - 1] = false; lapsed[0] = true; lapsed[W - 1] = true }
	od
}

init {
	atomic {
		byte i = 0;
		do
		:: i < N -> run Process(i); i++
		:: else -> break
		od;
		i = 0;
		do
		:: i < W -> run Writer(i); i++
		:: else -> break
		od;
		run Clock();
#if JOINS > 0
		run Joiner()
#endif
	}
}

#ifdef LIVE
ltl noWait { [] (waiting[0] -> <> !waiting[0]) }
#endif
