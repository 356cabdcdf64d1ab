/*
 * near.pml: the near copy of one value in one process, see internal/near.
 *
 * Time goes in steps. A connection may break (then what is on its way is lost),
 * or fall silent: it stays up, and nothing comes any more, as after a failover.
 *
 *   for so long  a copy that has changed at its source is used for less than
 *                LASTS after the change
 *   gone         and not at all once what was told has arrived, if the connection hears
 *   own change   never one that this process has changed itself
 */
#ifndef WRITES
#define WRITES 1 /* by others */
#endif
#ifndef OWN
#define OWN 1 /* by this process */
#endif
#ifndef TIME
#define TIME 4
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#define LASTS 2 /* internal/near/link.go: lasts = 3 * time.Second // what it proves, from when it was sent */

byte source = 1; /* version in Redis */
byte own = 0;    /* the newest that this process wrote, and knows of */
byte now = 0;
byte replaced[WRITES + OWN + 2]; /* when a version was */

/* The session: its connection, and what the server says on it: a version that has
 * changed (0), or a beat and when it was sent, plus 1. */
bool up = false, silent = false;
chan said = [3] of { byte };
byte session = 0;
byte beat = 0; /* when the next one may be sent: one in a step of time */

/* The vouch of the session, and until when it holds; 0 if it has ended. */
bool vouched = false;
byte until = 0, vouch = 0;

/* The copy: its version and its vouch. 0 if there is none. */
byte copy = 0, copyVouch = 0;
byte changes = 0; /* heard of */

byte writes = WRITES, faults = FAULTS;

inline forget() {
	/* internal/near/near.go: s.changes++ */
	/* internal/near/near.go: c.copies.Invalidate(handle) */
	changes++; copy = 0
}

inline endVouch() {
	/* internal/near/link.go: v.until.Store(0) */
	vouched = false; until = 0;
#ifndef MUTANT_COPIES_OUTLIVE
	vouch++
#endif
}

inline tell(what) {
	if
	:: up && !silent && nfull(said) -> said!what
	:: up && !silent && full(said) -> silent = true /* it is given up soon */
	:: else
	fi
}

inline write() {
	replaced[source] = now; source++; tell(0)
}

proctype Writer() {
end:
	do
	:: atomic { writes > 0 -> writes--; write() }
	:: atomic { now < TIME -> now++ }
	od
}

/* The link, and the beats. */
proctype Link() {
	byte what = 0;
end:
	do
	/* internal/near/link.go: args := []any{"client", "tracking", "on", "bcast", "prefix", s.beats} */
	:: atomic { !up && session < 2 -> session++; up = true; silent = false }
	/* internal/near/link.go: return h.client.Set(ctx, name, "", 2*lasts).Err() */
	:: atomic { up && beat <= now && now < TIME -> beat = now + 1; tell(now + 1) }
	:: atomic { up && said?[what] -> said?what;
		if
		:: what == 0 -> forget()
		/* internal/near/link.go: s.link.extend(s, sent+int64(lasts-tick)) */
#ifdef MUTANT_BEAT_COUNTS_WHEN_HEARD
		:: else -> vouched = true; until = now + LASTS
#else
		:: else -> vouched = true; until = (what - 1 + LASTS > until -> what - 1 + LASTS : until)
#endif
		fi;
		what = 0 }
	:: atomic { up && faults > 0 -> faults--; /* it breaks, which is seen at once, or some time after */
		do
		:: said?_
		:: empty(said) -> break
		od;
		silent = true }
	/* internal/near/link.go: s.cancel(errSilent) */
	:: atomic { up && silent && empty(said) -> up = false; endVouch() }
	od
}

proctype Reader() {
	byte ticket = 0, ticketVouch = 0, version = 0;
	byte writesOwn = OWN;
end:
	do
	/* internal/near/near.go: if t >= m.until || t >= m.vouch.until.Load() { */
#ifdef MUTANT_NO_BEATS
	:: atomic { copy != 0 && copyVouch == vouch && vouched ->
#else
	:: atomic { copy != 0 && copyVouch == vouch && now < until ->
#endif
		assert(copy == source || now < replaced[copy] + LASTS); /* for so long */
		assert(copy == source || silent || nempty(said)); /* gone */
		assert(copy >= own) } /* own change */
	/* internal/near/near.go: return Ticket{v, node, s.changes} */
	:: atomic { vouched && now < until -> ticket = changes; ticketVouch = vouch; goto get }
	/* loader.go: l.hub.Changed(k.names.Value) */
	:: atomic { writesOwn > 0 -> writesOwn--; write(); version = source };
	   atomic {
#ifndef MUTANT_OWN_CHANGE_IS_HEARD
		forget();
#endif
		own = version; version = 0 }
	od;
get:
	atomic { version = source };
	/* Another goroutine of this process may change it now. */
	if
	:: atomic { writesOwn > 0 -> writesOwn--; write() };
	   atomic {
#ifndef MUTANT_OWN_CHANGE_IS_HEARD
		forget();
#endif
		own = source }
	:: true
	fi;
	atomic {
		if
		/* internal/near/near.go: if s.changes != t.changes || now() >= t.vouch.until.Load() { */
#ifdef MUTANT_NO_TICKET
		:: now < until && version != 0 -> copy = version; copyVouch = vouch
#else
		:: changes == ticket && ticketVouch == vouch && now < until && version != 0 -> copy = version; copyVouch = vouch
#endif
		:: else
		fi;
		version = 0; ticket = 0; ticketVouch = 0; goto end
	}
}

init {
	atomic { run Writer(); run Link(); run Reader() }
}
