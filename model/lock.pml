/*
 * lock.pml: a lock, or with SLOTS > 1 a semaphore: acquire, hand-off, confirmation, the
 * queue, release, and local hand-offs.
 *
 * As in load.pml, a script is one atomic step, whatever has a TTL may end at any moment, and
 * FAULTS bounds how many faults occur. A renewal only postpones the end of a lease. As there
 * is no time in the model, it has no step.
 *
 *   one holder   no more than SLOTS holders have valid leases
 *   fences rise  the fence of each hold is higher than those of all holds before
 *   no barging   no owner is granted a slot while a live waiter is in the queue
 *   no silent    a release does not report success for a lease that was lost
 *   loss
 *   no false     a release reports a loss only if the lease was lost, or if the
 *   alarm        release was sent twice
 *   no leftovers a process that ends, or closes its Locker, without dying leaves
 *                no lease
 *   no wait      (LIVE) no process waits for ever
 */
#ifndef P
#define P 2 /* processes */
#endif
#ifndef R
#define R 2 /* requests of each process, one after another */
#endif
#ifndef SLOTS
#define SLOTS 1
#endif
#ifndef FAULTS
#define FAULTS 2
#endif
#if SLOTS == 1
#define FENCES 2 /* holds of a lease inside a process */
#else
#define FENCES 1
#endif

#define O (P * R) /* owners: one for each request */
#define NONE 255
#define fault faults > 0 -> faults--

/* The lock: key l in Redis. */
bool there = false;   /* the key exists */
byte last = 0;        /* f: the first fence of the last lease */
bool held[O];         /* by owner; first is the first of its fences */
byte first[O];
bool confirmed[O];    /* its lease has the full length, not that of a hand-off */
byte holders = 0;

/* The queue: key q in Redis. */
byte ticket[O];       /* 0 outside the queue */
bool alive[O];
byte tail = 0;

byte clock = 1;       /* of the server, for fences; it may stand still */
bool notified[O];     /* the notification "granted" is in flight */
bool dead[P];
byte faults = FAULTS;

bool valid[O];        /* has a lease, until it is released or ends */
bool lost[O];         /* its lease has ended without a release */
bool holds[O];
byte given = 0;       /* the highest fence given out */
byte used = 0;        /* the highest fence of a hold */
bool waiting0 = false;

/* lock.lua: last = string.format("%.0f", math.max(clock, past + fences_per_lease)) */
/* lock_free.lua: local fence = string.format("%.0f", math.max(clock, last + fences_per_lease)) */
inline newFence(o) {
#ifdef MUTANT_CLOCK_ALONE
	first[o] = clock;
#else
#ifdef MUTANT_ONE_FENCE
	first[o] = (clock > last + 1 -> clock : last + 1);
#else
	first[o] = (clock > last + FENCES -> clock : last + FENCES);
#endif
#endif
	assert(first[o] > given); /* fences rise */
	given = first[o] + FENCES - 1;
	last = first[o];
	there = true
}

inline grant(o, sure) {
	newFence(o);
	/* A script writes its changes at its end, which is the same step. */
	/* lock.lua: if not redis.pcall("SET", KEYS[1], text, "PX", ms).err then return end */
	/* lock.lua: redis.call("SET", KEYS[1], text, "PX", ms) */
	/* In a full Redis this comes before the SET, with the same TTL: */
	/* lock.lua: redis.call("PEXPIRE", KEYS[1], ms) */
	/* This is for a forged key, which the model does not have: */
	/* lock.lua: if left == -1 or left > ms then redis.call("PEXPIRE", key, ms) end */
	/* lock_free.lua: redis.call("SET", KEYS[1], "lock " .. fence .. holder, "PX", ARGV[2]) */
	held[o] = true; confirmed[o] = sure; holders++;
	valid[o] = true; lost[o] = false
}

/* The head of the queue, or O. */
inline findHead(o) {
	o = O; k = 0;
	do
	:: k < O ->
		if
		:: ticket[k] != 0 && (o == O || ticket[k] < ticket[o]) -> o = k
		:: else
		fi;
		k++
	:: else -> break
	od;
	k = 0
}

/* In a half-moved slot, a request reaches the lock and not the queue. */
#ifdef APART
#define reach() if :: apart = false :: apart = true fi
#else
#define reach() skip
#endif

/* lock.lua: while holders < slots and waiters > 0 do */
/* gone is the owner whose lease the script of sender releases, or NONE. */
inline settle(sender, gone) {
	do
	:: !apart && holders < SLOTS ->
		/* lock.lua: local head = redis.call("ZRANGEBYSCORE", queue, "(0", "+inf", "LIMIT", 0, 1)[1] */
		findHead(head);
		if
		:: head == O -> break
		:: else
		fi;
		/* lock.lua: redis.call("ZREM", queue, head, expiry(head)) */
		ticket[head] = 0;
		if
#ifdef MUTANT_HOLDER_IS_A_WAITER
		:: alive[head] ->
			assert(!held[head]); /* a hand-off shortens no lease */
#else
		/* lock.lua: local alive = waits(head) and not fences[head] and head ~= leaving */
		:: alive[head] && !held[head] && head != gone ->
#endif
			/* lock.lua: grant(head, confirmed_within) */
			grant(head, false);
			if
			/* lock.lua: notify(channel, "G" .. string.rep("\0", 8) .. string.char(#head) .. head) */
			:: head != sender -> notified[head] = true
			:: true /* lost */
			fi
		:: else
		fi;
		alive[head] = false
	:: else -> break
	od;
	head = 0
}

/* lock.lua: fences[owner], ends[owner] = nil, nil */
inline drop(o) {
	if
	:: held[o] -> held[o] = false; holders--; confirmed[o] = false; first[o] = 0
	:: else
	fi
}

inline noBarging(o) {
	k = 0;
	do
	:: k < O -> assert(k == o || ticket[k] == 0 || !alive[k] || apart); k++
	:: else -> break
	od;
	k = 0
}

/* A hold begins. */
inline begin(o, fence) {
	holds[o] = true;
	n = 0; k = 0;
	do
	:: k < O -> n = n + (holds[k] && valid[k]); k++
	:: else -> break
	od;
	k = 0;
	assert(n <= SLOTS); /* one holder */
	n = 0;
	assert(!valid[o] || fence > used); /* fences rise */
	used = (fence > used -> fence : used)
}

/* A lease is released, or was lost before. ours is the answer. */
inline released(o) {
#ifdef MUTANT_LOSS_IS_A_SECOND_RELEASE
	ours = held[o] || there;
#else
	/* lock_release.lua: if fences[ARGV[1]] then */
	/* lock_acquire.lua: if fences[ARGV[6]] then released = 1 end */
	ours = held[o];
#endif
	assert(!ours || !lost[o]); /* no silent loss */
	assert(ours || lost[o] || twice); /* no false alarm */
	valid[o] = false;
	drop(o)
}

proctype Process(byte me) {
	byte request = 0, o = 0, back = NONE, place = 0, fence = 0;
	byte head = 0, k = 0, n = 0;
	bool trying = false, ours = false, twice = false, apart = false, closed = false;

next:
	skip; /* at any later time */
ready:
	atomic {
		if
		:: (request == R || closed) && back == NONE -> goto end
		:: request < R && !closed -> o = me * R + request; request++
		fi;
		place = 0;
		if
		:: trying = false; waiting0 = waiting0 || me == 0
		:: back == NONE -> trying = true
		fi
	};

#ifdef MUTANT_CLOSE_OVERTAKES
	/* Close does not wait for the answer: the release arrives before the request. */
	if
	:: atomic { true -> ticket[o] = 0; alive[o] = false; closed = true }
	:: atomic { true -> skip }
	fi;
#endif
requesting:
	atomic {
		reach();
		/* lock_acquire.lua: leaving = ARGV[6] */
		/* lock_acquire.lua: drop(leaving) */
		if
		:: back != NONE -> released(back)
		:: else
		fi;
		findHead(head);
		if
		/* lock_acquire.lua: if fences[owner] then */
		:: held[o] ->
			/* lock_acquire.lua: grant(owner, lease) -- with a fence above */
#ifdef MUTANT_FENCE_OF_THE_HAND_OFF
			skip
#else
			newFence(o)
#endif
		:: !held[o] && trying ->
			/* lock_acquire.lua: settle() -- waiters come first */
#ifndef MUTANT_TRY_OVERTAKES
			settle(o, back);
#endif
			/* lock_acquire.lua: if holders < slots then grant(owner, lease) end */
			if
			:: holders < SLOTS -> noBarging(o); grant(o, true)
			:: else
			fi
		/* lock_acquire.lua: if holders < slots and not ARGV[6] then grant(owner, lease) end */
		:: !held[o] && !trying && apart ->
			if
			:: holders < SLOTS && back == NONE -> grant(o, true)
			:: else
			fi
		/* lock_acquire.lua: elseif holders < slots and waiters == 0 then */
		/* lock_free.lua: if last and (not KEYS[2] or redis.call("EXISTS", KEYS[2]) == 0) then */
#ifdef MUTANT_OVERTAKE
		:: !held[o] && !trying && !apart && holders < SLOTS -> noBarging(o); grant(o, true)
		:: !held[o] && !trying && !apart && holders >= SLOTS ->
#else
		:: !held[o] && !trying && !apart && holders < SLOTS && head == O -> noBarging(o); grant(o, true)
		:: !held[o] && !trying && !apart && (holders >= SLOTS || head != O) ->
#endif
			/* lock_acquire.lua: if place or released == 1 then redis.call("PEXPIRE", queue, waiter_lasts) end */
			/* lock_acquire.lua: ticket = place or tonumber(ARGV[5] or "0") */
			if
			:: ticket[o] == 0 && place != 0 -> ticket[o] = place
			:: ticket[o] == 0 && place == 0 -> tail++; ticket[o] = tail
			:: else
			fi;
			/* lock_acquire.lua: redis.call("ZADD", queue, string.format("%.0f", ticket), owner, stop, expiry(owner)) */
			/* lock_acquire.lua: redis.call("PEXPIRE", queue, waiter_lasts) */
			alive[o] = true; place = ticket[o]
		fi;
		head = 0;
		settle(o, back);
		/* lock_acquire.lua: if fences[owner] then ends[owner], lengths[owner] = now + lease, lease end */
		confirmed[o] = held[o];
		if
		:: fault; /* the answer is lost, so the request is sent again */
			if
			:: place = 0
			:: true
			fi;
			twice = true; goto requesting
		:: true
		fi;
		twice = false; ours = false; back = NONE; notified[o] = false;
		if
		/* lock_acquire.lua: if fences[owner] then return answer({"leased", released, fences[owner], handed}) end */
		:: held[o] && !closed -> fence = first[o]; place = 0; waiting0 = waiting0 && me != 0; begin(o, fence); goto holding
#ifdef MUTANT_CLOSE_OVERTAKES
		:: closed -> place = 0; waiting0 = waiting0 && me != 0; goto end
#else
		/* internal/lockqueue/try.go: case q.closed: */
		:: held[o] -> closed = true; place = 0; waiting0 = waiting0 && me != 0; goto leave
#endif
		:: !held[o] && trying -> trying = false; waiting0 = waiting0 && me != 0; goto next
		:: else
		fi
	};

waiting:
	if
#ifdef MUTANT_UNCONFIRMED
	:: atomic { notified[o] -> notified[o] = false; assert(valid[o]); fence = first[o]; begin(o, fence); goto holding }
#else
	/* internal/lockqueue/requester.go: case <-r.slot.Ready(): */
	:: atomic { notified[o] -> notified[o] = false; goto requesting }
#endif
#ifndef MUTANT_NO_TIMER
	/* internal/lockqueue/requester.go: case <-timer.C: */
	:: atomic { true -> goto requesting }
#endif
	/* internal/lockqueue/requester.go: r.withdraw(nil) */
#ifdef LIVE
	:: atomic { me != 0 ->
#else
	:: atomic { true ->
#endif
		place = 0; waiting0 = waiting0 && me != 0; goto leave } /* no caller waits any more */
	:: atomic { fault; dead[me] = true; waiting0 = waiting0 && me != 0; goto end }
	fi;

holding:
	if
	:: atomic { fault; dead[me] = true; holds[o] = false; goto end }
#if SLOTS == 1
	/* internal/lockqueue/hold.go: g.fence++ */
	:: atomic { fence == first[o] && held[o] -> fence++; begin(o, fence); goto holding }
#endif
	:: atomic { true -> holds[o] = false; goto release }
	/* internal/lockqueue/hold.go: r.request.Release = h.grant.owner */
	:: atomic { request < R && !closed -> holds[o] = false; back = o; goto ready }
	fi;

release:
	atomic {
		reach();
		released(o);
		settle(o, o);
		if
		:: fault; twice = true; goto release
		:: true
		fi;
		twice = false; ours = false;
		goto next
	};

leave:
	atomic {
		reach();
		if
#ifdef MUTANT_RELEASE_ANY
		:: true -> k = 0;
			do
			:: k < O -> drop(k); k++
			:: else -> break
			od;
			k = 0
#else
		/* lock_release.lua: leaving = ARGV[1] */
		/* lock_release.lua: drop(leaving) */
		:: held[o] -> valid[o] = false; drop(o)
		:: else
#endif
		fi;
		/* lock_release.lua: redis.call("ZREM", queue, ARGV[1], expiry(ARGV[1])) */
		/* lock_release.lua: elseif queue then */
		if
		:: !apart -> ticket[o] = 0; alive[o] = false
		:: else /* it stays in the queue until it counts as dead */
		fi;
		notified[o] = false;
		settle(o, o);
		goto next
	};

end:
#ifdef APART
	skip /* an owner that stayed in the unreachable queue may be handed the lock, until that is not confirmed */
#else
	atomic {
		k = 0;
		do
		:: k < O -> assert(k / R != me || !held[k] || dead[me]); k++ /* no leftovers */
		:: else -> break
		od;
		k = 0
	}
#endif
}

inline ends(o) {
	drop(o); valid[o] = false; lost[o] = true
}

inline forgetLock() {
	o = 0;
	do
	:: o < O ->
		if
		:: held[o] -> ends(o)
		:: else -> lost[o] = true
		fi;
		o++
	:: else -> break
	od;
	o = 0; there = false;
	clock = (clock > last + FENCES -> clock : last + FENCES); last = 0 /* the key ends later than the clock passes the last fence */
}

#ifdef MUTANT_NO_END
#define mayEnd(o) (!dead[o / R] && faults > 0)
#else
#define mayEnd(o) (dead[o / R] || faults > 0)
#endif

/* A lease ends: its holder is dead, was stopped, or confirmed too late. Or a waiter does not
 * count any more: it is dead, was stopped, or could not send its request. */
#define endsOf(o) \
	atomic { held[o] && mayEnd(o) -> faults = faults - !dead[o / R]; ends(o) } \
	:: atomic { alive[o] && (dead[o / R] || faults > 0) -> faults = faults - !dead[o / R]; alive[o] = false }

/* What ends by its TTL, and what is lost. The next request detects an end. */
proctype Clock() {
	byte o = 0;
end:
	do
	:: endsOf(0)
	:: endsOf(1)
#if P * R > 2
	:: endsOf(2)
#endif
#if P * R > 3
	:: endsOf(3)
#endif
	/* lock_only.lua: if redis.pcall("SET", KEYS[1], free, "PX", remembered).err then */
	/* lock_only.lua: redis.call("PEXPIRE", KEYS[1], remembered) */
	/* lock_only.lua: redis.call("SET", KEYS[1], free, "PX", remembered) */
	:: atomic { there && holders == 0 -> forgetLock() }
	:: atomic { there && faults > 0 -> faults--; forgetLock() } /* DEL */
	:: atomic { faults > 0 -> faults--; forgetLock(); /* FLUSHALL, or a failover */
		o = 0;
		do
		:: o < O -> ticket[o] = 0; alive[o] = false; o++
		:: else -> break
		od;
		o = 0 }
	od
}

init {
	atomic {
		byte i = 0;
		do
		:: i < P -> run Process(i); i++
		:: else -> break
		od;
		run Clock()
	}
}

#ifdef LIVE
ltl noWait { [] (waiting0 -> <> !waiting0) }
#endif
