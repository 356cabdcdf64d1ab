/*
 * near.pml: the near entry of one value in one process, see internal/near.
 *
 * Time advances in steps. A tracking connection may break: invalidations in flight are
 * lost. Or it stays open and silent, as after a failover.
 *
 *   bounded      an entry is returned for less than LASTS after its value has changed
 *   gone         never after the invalidation has arrived, on a working connection
 *   own change   never after this process has changed the value itself
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
#define LASTS 2 /* internal/near/heartbeat.go: = 3 * time.Second // from when the last heartbeat that arrived was sent */

byte source = 1; /* version in Redis */
byte own = 0;    /* the newest version that this process wrote */
byte now = 0;
byte replaced[WRITES + OWN + 2]; /* when each version was replaced */

/* The tracking connection, and the messages on it: 0 for an invalidation, or the time at
 * which a heartbeat was sent, plus 1. */
bool up = false, silent = false;
chan sent = [3] of { byte };
byte connections = 0;
byte heartbeat = 0; /* when the next one may be sent: one in each step of time */

/* The trust of the connection, and until when it lasts; 0 if it has ended. */
bool trusted = false;
byte until = 0, trust = 0;

/* The entry: its version and its trust. 0 if there is none. */
byte entry = 0, entryTrust = 0;
byte changes = 0; /* received */

byte writes = WRITES, faults = FAULTS;

inline invalidate() {
	/* internal/near/near.go: s.changes++ */
	/* internal/near/near.go: c.entries.Invalidate(handle) */
	changes++; entry = 0
}

inline endTrust() {
	/* internal/near/tracker.go: v.stop() */
	trusted = false; until = 0;
#ifndef MUTANT_ENTRIES_OUTLIVE
	trust++
#endif
}

inline publish(what) {
	if
	:: up && !silent && nfull(sent) -> sent!what
	:: up && !silent && full(sent) -> silent = true
	:: else
	fi
}

inline write() {
	replaced[source] = now; source++; publish(0)
}

proctype Writer() {
end:
	do
	:: atomic { writes > 0 -> writes--; write() }
	:: atomic { now < TIME -> now++ }
	od
}

/* The tracker, and the heartbeats. */
proctype Tracker() {
	byte what = 0;
end:
	do
	/* internal/near/connection.go: args := []any{"client", "tracking", "on", "bcast", "prefix", c.heartbeats} */
	:: atomic { !up && connections < 2 -> connections++; up = true; silent = false }
	/* internal/near/heartbeat.go: return h.client.Set(ctx, name, "", 2*trustLasts).Err() */
	:: atomic { up && heartbeat <= now && now < TIME -> heartbeat = now + 1; publish(now + 1) }
	:: atomic { up && sent?[what] -> sent?what;
		if
		:: what == 0 -> invalidate()
		/* internal/near/heartbeat.go: c.tracker.extendTrust(c, sent+int64(trustLasts-tick)) */
#ifdef MUTANT_TRUST_FROM_ARRIVAL
		:: else -> trusted = true; until = now + LASTS
#else
		:: else -> trusted = true; until = (what - 1 + LASTS > until -> what - 1 + LASTS : until)
#endif
		fi;
		what = 0 }
	:: atomic { up && faults > 0 -> faults--; /* the connection breaks; that is detected at once or later */
		do
		:: sent?_
		:: empty(sent) -> break
		od;
		silent = true }
	/* internal/near/heartbeat.go: c.cancel(errSilent) */
	:: atomic { up && silent && empty(sent) -> up = false; endTrust() }
	od
}

proctype Reader() {
	byte ticket = 0, ticketTrust = 0, version = 0;
	byte writesOwn = OWN;
end:
	do
	/* internal/near/near.go: if t >= e.until || t >= e.trust.until.Load() { */
#ifdef MUTANT_NO_HEARTBEATS
	:: atomic { entry != 0 && entryTrust == trust && trusted ->
#else
	:: atomic { entry != 0 && entryTrust == trust && now < until ->
#endif
		assert(entry == source || now < replaced[entry] + LASTS); /* bounded */
		assert(entry == source || silent || nempty(sent)); /* gone */
		assert(entry >= own) } /* own change */
	/* internal/near/near.go: return Ticket{trust, node, s.changes} */
	:: atomic { trusted && now < until -> ticket = changes; ticketTrust = trust; goto get }
	/* loader.go: l.client.Hub.Invalidate(k.names.Value) */
	:: atomic { writesOwn > 0 -> writesOwn--; write(); version = source };
	   atomic {
#ifndef MUTANT_OWN_CHANGE_KEEPS_ENTRY
		invalidate();
#endif
		own = version; version = 0 }
	od;
get:
	atomic { version = source };
	/* Another goroutine of this process may change the value now. */
	if
	:: atomic { writesOwn > 0 -> writesOwn--; write() };
	   atomic {
#ifndef MUTANT_OWN_CHANGE_KEEPS_ENTRY
		invalidate();
#endif
		own = source }
	:: true
	fi;
	atomic {
		if
		/* internal/near/near.go: if s.changes != t.changes || now() >= t.trust.until.Load() { */
#ifdef MUTANT_NO_TICKET
		:: now < until && version != 0 -> entry = version; entryTrust = trust
#else
		:: changes == ticket && ticketTrust == trust && now < until && version != 0 -> entry = version; entryTrust = trust
#endif
		:: else
		fi;
		version = 0; ticket = 0; ticketTrust = 0; goto end
	}
}

init {
	atomic { run Writer(); run Tracker(); run Reader() }
}
