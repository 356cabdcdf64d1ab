/*
 * load.pml: the loads of one key: ACQUIRE, FILL, RELEASE, INVALIDATE, SET, and the write
 * mark of Update.
 *
 * A script is one atomic step, as in Redis. Between steps anything may happen to a
 * process: its notification is late or lost, its lease ends because the process was stopped,
 * it dies, an answer is lost, Redis loses all data. FAULTS bounds how many faults occur, of
 * all kinds together. Only notifications may be lost without limit.
 *
 * There is no time in this model: whatever has a TTL may end at any moment, by a step of
 * Clock. So the results hold for every TTL.
 *
 * A comment that begins with the name of a file quotes a line of it. model_test.go checks
 * that the line is still there. The labels of Process are the states of load.go.
 *
 * A value is a version of the source. The code does not know versions; the assertions do:
 *
 *   one fetch    no lease begins while another is valid
 *   not stored   the stored value is never older than the last completed write
 *   not left     nor than the write of a dead writer, once its mark has ended
 *   not returned a Get returns no value that is older than the last write that was complete
 *                when the Get began; this holds also if it joined another load
 *   no wait      (LIVE) no process waits for ever
 */
#ifndef N
#define N 2 /* processes that Get */
#endif
#ifndef GETS
#define GETS 2 /* of each process, one after another */
#endif
#ifndef W
#define W 1 /* writers; each does one Delete, Set or Update */
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef MAIL
#define MAIL 1 /* notifications in flight to a process; a new one may replace an old one */
#endif
#ifndef JOINS
#define JOINS 0 /* callers that join a load of process 0 */
#endif

#define NONE 255 /* no owner */
#define DEAD 254 /* an owner that never releases: it died, or does not know that it has the lease */
#define ANY 253  /* protocol.AnyFence */

mtype = { V, R, E };

byte source = 1; /* version there */

/* The value: key v in Redis. */
byte val = 0, valf = 0; /* version, 0 if there is none, and fence in its envelope */
bool brief = false;     /* it ends with the last mark */

/* The meta: key m in Redis. */
byte owner = NONE, fence = 0;
bool tainted = false, failed = false;
bool waits[N];

bool marked[W]; /* the marks: key u in Redis */

byte now = 0; /* the server's clock, for fences */
chan mail[N] = [MAIL] of { mtype, byte, byte }; /* kind, fence, version: in flight */

byte completed = 0; /* the newest version whose Delete, Set or Update has completed */
byte least = 0;     /* the stored value must not be older than this */
bool valid[N];      /* has a lease */
bool isWaiting[N];
bool dead[W];
bool lapsed[W];  /* its mark ended while the writer was stopped, or was lost */
byte written[W]; /* the version that it wrote during its mark; 0 before */
byte faults = FAULTS;

/* The load of process 0, which other callers may join: see internal/flight. */
bool open = false, came = false, joined = false, late = false;
byte since = 0; /* completed, when the last caller arrived */
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

/* The meta ends. The holder of the lease may not have noticed. */
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

/* The lease of another process ends. */
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

/* flight.Flight.Advance: callers that have arrived may receive what is read from now on. */
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
	byte lease = 0, found = 0; /* the fence of our lease, and the version that was fetched under it */
	byte fenceOfWait = 0, f = 0, version = 0, i = 0;
	mtype kind;

next:
	skip; /* at any later time */
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
		:: val != 0 -> over = valf /* it is stale or unusable */
#endif
		:: val == 0
		/* lookup.go: return lookup[V]{state: skipped}, nil */
		:: val != 0 /* the lookup was skipped */
		fi;
		if
		:: me == 0 -> open = true; joined = false; late = came
		:: else
		fi
	};

acquiring:
	atomic {
		/* load.go: r.flight.Advance() */
		advanceCutoff();
		if
		/* acquire.lua: return {"value", redis.call("GET", KEYS[1]), now_text} */
		/* acquire.lua: force = head == ARGV[7] */
		:: val != 0 && !(over != 0 && over == valf) -> isWaiting[me] = false; got = val; closeFlight(); goto done
		:: else
		fi;
		if
#ifdef MUTANT_SECOND_LEASE
		:: owner != NONE && false -> skip
#else
		:: owner != NONE ->
			/* acquire.lua: if redis.call("HLEN", KEYS[2]) < tonumber(ARGV[5]) then redis.pcall("HSET", KEYS[2], "w" .. ARGV[3], "1") end */
			waits[me] = true; /* a full Redis refuses that: the same as a lost notification */
			/* acquire.lua: return {"wait", string.format("%.0f", last), left, now_text} */
			fenceOfWait = fence; isWaiting[me] = true; goto waiting
#endif
		/* acquire.lua: return {"failed", redis.call("HGET", KEYS[2], "e"), left} */
		:: owner == NONE && failed -> isWaiting[me] = false; closeFlight(); goto done
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
		:: fault; owner = DEAD; isWaiting[me] = false; closeFlight(); goto done /* the answer is lost for good */
		fi;
		isWaiting[me] = false;
		/* fetch.go: f := r.runFetch(timeoutCtx, fetchCtx, a.Fence) */
		advanceCutoff(); found = source; goto holding
	};

waiting:
	if
	:: atomic { mail[me]?kind, f, version ->
		if
		/* internal/wake/slot.go: message, counts := s.newest, s.present && s.newest.Fence >= fence */
#ifndef MUTANT_OLD_MESSAGE
		:: f < fenceOfWait -> f = 0; version = 0; goto waiting
		:: f >= fenceOfWait ->
#else
		:: true ->
#endif
			f = 0; fenceOfWait = 0;
			if
			:: kind == V -> goto notified
			:: kind == E -> version = 0; advanceCutoff(); closeFlight(); isWaiting[me] = false; goto done
			:: kind == R -> version = 0; goto acquiring
			fi
		fi }
#ifndef MUTANT_NO_TIMER
	/* load.go: timer := time.NewTimer(r.recheckAfter(r.acquire.Left)) */
	:: atomic { true -> fenceOfWait = 0; goto acquiring }
#endif
	fi;

notified:
	atomic {
		closeFlight();
		/* load.go: if !r.flight.HasLate() { */
		if
#ifndef MUTANT_LATE_JOINER_RECEIVES
		:: me == 0 && joined && late ->
			/* load.go: seen, lookupErr := r.l.lookup(ctx, r.k) */
			if
			:: val == 0 -> version = 0; goto acquiring
			:: val != 0 -> got = val; advanceCutoff()
			fi
#else
		:: me == 0 && joined && late -> got = version; advanceCutoff()
#endif
		:: else -> got = version
		fi;
		version = 0; isWaiting[me] = false; goto done
	};

holding:
	if
	:: atomic { fault; valid[me] = false; /* the process dies */
		if
		:: mine -> owner = DEAD
		:: else
		fi;
		closeFlight(); came = came && !(joined && me == 0); joined = joined && me != 0; lease = 0; found = 0; goto end }
	:: atomic { !mine -> /* a notification, or a renewal that was refused */
		/* renew.lua: if read("HGET", KEYS[1], "o") == ARGV[1] then return redis.call("PEXPIRE", KEYS[1], ARGV[2]) end */
		/* fetch.go: return r.acquiring // a Delete, Set or Update ended the lease, or no renewal was in time */
		valid[me] = false; lease = 0; found = 0; over = 0; goto acquiring }
	:: atomic { true -> goto release }
	/* fetch.go: r.flight.CloseToJoiners() */
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
			/* FILL is refused. Callers that arrived before the fetch receive the value nevertheless. */
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
			:: !taint /* so does a full Redis: the old value stays */
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
		:: true /* sent twice: the second FILL found another value and reports a loss */
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
			:: publish(i, E, lease, 0); failed = true /* the fetch failed; the failure may end at once */
			fi
		fi;
		advanceCutoff(); closeFlight(); goto done
	};

done:
	atomic {
		assert(got == 0 || got >= began); /* not returned */
		if
		:: me == 0 && joined ->
			assert(got == 0 || late || got >= since); /* nor to a joiner, unless it is late */
			came = false; joined = false; late = false; since = 0
		:: else
		fi;
		open = open && me != 0;
		got = 0; began = 0; over = 0; lease = 0; found = 0; fenceOfWait = 0; goto next
	};

end: /* later notifications do not matter */
	atomic {
		waits[me] = false;
		do
		:: mail[me]?_, _, _
		:: empty(mail[me]) -> break
		od
	}
}

/* A caller of process 0 arrives at any time. After its lookup it joins the running load. */
proctype Joiner() {
end:
	do
	/* loader.go: came := l.flights.Arrive() // before the lookup: a fetch that starts during the lookup is not older than this call */
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
	/* To the holder, which notices this by itself in the model: */
	/* invalidate.lua: if holder then notify(ARGV[1] .. holder, ARGV[3] .. owner) end */
#endif
}

/* In a half-moved slot, an invalidation is three scripts with one key each. The third is the
 * same as the first because of the stale value that a lease may read, which is not in this
 * model. */
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
	:: brief && !anyMark -> deleteValue() /* with the last mark, or sooner */
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

	/* Nothing orders two Sets. In the model, the last one has the newest version. */
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
#ifdef MUTANT_MARK_KEEPS_LEASE
	atomic { marked[me] = true; lapsed[me] = false };
#else
	atomic { marked[me] = true; lapsed[me] = false; invalidate(i) };
#endif
#endif
marking:
	if
	/* invalidate.lua: if ends and ends > now then */
	:: atomic { !marked[me] -> marked[me] = true; lapsed[me] = false; /* renewed after its end */
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

/* What ends by its TTL, and what is lost. */
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
	:: atomic { marked[0] && !dead[0] && faults > 0 -> faults--; markEnds(0) } /* its writer was stopped */
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
ltl noWait { [] (isWaiting[0] -> <> !isWaiting[0]) }
#endif
