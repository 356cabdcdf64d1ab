/*
 * store.pml: loads with a Store. Their leases may be lost at any time, so any number of
 * processes may create the same key at the same time.
 *
 * The table decides: there is one row, all callers return it, and none gets an error. The row
 * may be deleted once; then the next one is the row.
 */
#ifndef N
#define N 3
#endif
#ifndef DELETES
#define DELETES 1
#endif
#define NONE 255

byte row = 0;  /* its value; 0 if there is none */
byte rows = 0;
byte owner = NONE;
bool duplicate = false; /* an INSERT failed because of the unique key */
byte deletes = DELETES;
byte ever = 0; /* bit set of the values that have been the row */

proctype Process(byte me) {
	byte seen = 0, version = 0;

	/* lookup.go: v, err := l.opt.Store.Lookup(ctx, k.user) */
	seen = row;
	if
	:: seen != 0 -> goto done
	:: else
	fi;

acquire:
	if
	:: atomic { owner == NONE -> owner = me }
	:: atomic { owner != NONE && owner != me -> seen = row }; /* after a notification, or the recheck timer */
		if
		:: seen != 0 -> goto done
		:: else -> goto acquire
		fi
	:: true /* unleased: Redis is unavailable */
	fi;

	/* fetch.go: v, err := r.l.opt.Store.Lookup(ctx, r.k.user) */
	seen = row;
	if
	:: seen != 0 -> goto release
	:: else
	fi;
	version = me + 1; /* the fetch */

create:
	/* fetch.go: return r.l.opt.Store.Create(timeoutCtx, r.k.user, v) */
	/* oncesql/dialect.go: insert += " ON CONFLICT (" + d.quote(key) + ") DO NOTHING" + */
	atomic {
		if
		:: row == 0 -> row = version; rows++; ever = ever | (1 << version)
#ifdef MUTANT_PLAIN_INSERT
		:: else -> duplicate = true
#else
		:: else
#endif
		fi
	};
#ifdef MUTANT_RETURNS_ITS_OWN
	seen = version;
#else
	seen = row;
	if
	:: seen == 0 -> goto create /* the row was deleted since */
	:: else
	fi;
#endif

release:
	atomic {
		if
		:: owner == me -> owner = NONE
		:: else
		fi
	};
done:
	assert(seen != 0 && (ever & (1 << seen)));
	assert(rows <= 1 && !duplicate);
	assert(deletes < DELETES || seen == row)
}

proctype Clock() {
end:
	do
	:: atomic { owner != NONE -> owner = NONE } /* the lease is lost */
	:: atomic { deletes > 0 && row != 0 -> deletes--; row = 0; rows-- }
	od
}

init {
	atomic {
		byte i = 0;
		do
		:: i < N -> run Process(i); i++
		:: else -> break
		od;
		run Clock()
	}
}
