#!/usr/bin/env bash
#
# Checks the models of this directory with spin, and checks that each mutant violates its
# model. Exits 1 if a model is violated, a mutant is not caught, or a search is incomplete.
# It needs spin and a C compiler, and installs nothing.
#
#	model/check.sh          all searches
#	model/check.sh NAME...  the searches with these names
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

memory=1600   # MB for one search; two run at a time
depth=2000000 # steps of the longest run

# The searches: name, whether it holds or fails, model, definitions. LIVE searches check
# liveness: under weak fairness, no process waits for ever.
searches() {
	cat <<-'END'
		loads           holds load -DN=2 -DGETS=2 -DW=1 -DFAULTS=1
		writers         holds load -DN=2 -DGETS=1 -DW=2 -DFAULTS=1
		faults          holds load -DN=2 -DGETS=1 -DW=1 -DFAULTS=2
		updates         holds load -DN=2 -DGETS=1 -DW=1 -DFAULTS=2 -DUPDATES -DPASSOVER -DJOINS=1
		late-messages   holds load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DMAIL=2 -DJOINS=1
		waiting         holds load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DLIVE
		half-moved      holds load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DAPART
		half-updates    holds load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DUPDATES -DAPART
		lock            holds lock -DP=2 -DR=2 -DFAULTS=1
		lock-of-three   holds lock -DP=3 -DR=1 -DFAULTS=1
		lock-faults     holds lock -DP=2 -DR=1 -DFAULTS=4
		semaphore       holds lock -DP=3 -DR=1 -DFAULTS=1 -DSLOTS=2
		half-moved-lock holds lock -DP=2 -DR=2 -DFAULTS=1 -DAPART
		half-moved-semaphore holds lock -DP=3 -DR=1 -DFAULTS=1 -DSLOTS=2 -DAPART
		waiting-lock    holds lock -DP=2 -DR=1 -DFAULTS=2 -DLIVE
		near            holds near
		store           holds store

		m1  fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DMUTANT_SECOND_LEASE
		m2  fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DMUTANT_FILL_UNOWNED
		m3  fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DMUTANT_INVALIDATE_KEEPS_LEASE
		m4  fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DMUTANT_SET_KEEPS_LEASE
		m5  fails load -DN=2 -DGETS=2 -DW=1 -DFAULTS=1 -DMUTANT_OLD_MESSAGE
		m6  fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DJOINS=1 -DMUTANT_LATE_JOINER_RECEIVES
		m7  fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DJOINS=1 -DMUTANT_REFUSED_TO_ALL
		m8  fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DJOINS=1 -DMUTANT_CLOSE_LATE
		m9  fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=2 -DUPDATES -DMUTANT_UNTAINTED
		m10 fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=2 -DUPDATES -DMUTANT_TAINT_ENDS
		m11 fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=2 -DUPDATES -DMUTANT_MARK_KEEPS_LEASE
		m12 fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=2 -DUPDATES -DMUTANT_LATE_RENEWAL_KEEPS
		m13 fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=2 -DUPDATES -DMUTANT_UNMARK_KEEPS
		m14 fails load -DN=1 -DGETS=1 -DW=2 -DFAULTS=1 -DUPDATES -DMUTANT_UNMARK_ALL
		m15 fails load -DN=2 -DGETS=1 -DW=2 -DFAULTS=1 -DUPDATES -DMUTANT_SET_LASTS
		m16 fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DLIVE -DMUTANT_NO_TIMER
		m17 fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DLIVE -DMUTANT_NO_END
		m18 fails lock -DP=2 -DR=2 -DFAULTS=1 -DMUTANT_CLOCK_ALONE
		m19 fails lock -DP=2 -DR=2 -DFAULTS=1 -DMUTANT_ONE_FENCE
		m20 fails lock -DP=2 -DR=2 -DFAULTS=1 -DMUTANT_LOSS_IS_A_SECOND_RELEASE
		m21 fails lock -DP=2 -DR=2 -DFAULTS=1 -DMUTANT_UNCONFIRMED
		m22 fails lock -DP=2 -DR=2 -DFAULTS=1 -DMUTANT_RELEASE_ANY
		m23 fails lock -DP=3 -DR=1 -DFAULTS=1 -DMUTANT_OVERTAKE
		m24 fails lock -DP=3 -DR=1 -DFAULTS=1 -DMUTANT_TRY_OVERTAKES
		m25 fails lock -DP=2 -DR=1 -DFAULTS=1 -DLIVE -DMUTANT_NO_TIMER
		m26 fails lock -DP=2 -DR=1 -DFAULTS=1 -DLIVE -DMUTANT_NO_END
		m27 fails near -DMUTANT_NO_TICKET
		m28 fails near -DMUTANT_ENTRIES_OUTLIVE
		m29 fails near -DMUTANT_TRUST_FROM_ARRIVAL
		m30 fails near -DMUTANT_NO_HEARTBEATS
		m31 fails near -DMUTANT_OWN_CHANGE_KEEPS_ENTRY
		m32 fails store -DMUTANT_PLAIN_INSERT
		m33 fails store -DMUTANT_RETURNS_ITS_OWN
		m34 fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=1 -DAPART -DMUTANT_VALUE_FIRST
		m35 fails load -DN=2 -DGETS=1 -DW=1 -DFAULTS=2 -DUPDATES -DAPART -DMUTANT_MARK_LAST
		m36 fails lock -DP=2 -DR=2 -DFAULTS=1 -DMUTANT_CLOSE_OVERTAKES
		m37 fails lock -DP=3 -DR=2 -DFAULTS=1 -DSLOTS=2 -DMUTANT_FENCE_OF_THE_HAND_OFF
		m38 fails lock -DP=3 -DR=1 -DFAULTS=1 -DSLOTS=2 -DAPART -DMUTANT_HOLDER_IS_A_WAITER
	END
}

# search NAME WANTED MODEL DEFINITION... runs one search in a directory of its own.
search() {
	local name=$1 wanted=$2 model=$3 result states
	shift 3
	local flags=(-O1 -w -DCOLLAPSE "-DMEMLIM=$memory") run=("-m$depth")
	case " $* " in
	*" -DLIVE "*) flags+=(-DNFAIR=3) run+=(-a -f) ;;
	*) flags+=(-DSAFETY) ;;
	esac
	mkdir "$work/$name"
	pushd "$work/$name" >/dev/null
	if ! { spin -a "$@" "$here/$model.pml" && "${CC:-cc}" "${flags[@]}" -o pan pan.c; } >out 2>&1; then
		result="could not be built: $(tail -n 1 out)"
	else
		./pan "${run[@]}" >out 2>&1 || true
		result=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' out | head -n 1)
	fi
	states=$(awk '/states, stored/ { print $1 }' out)
	popd >/dev/null

	local mutant=${*: -1}
	case $wanted in
	holds)
		if [[ -z $result ]] && grep -q 'errors: 0$' "$work/$name/out" &&
			! grep -qE 'not completed|too small|MEMLIM' "$work/$name/out"; then
			printf 'holds     %-14s %11s states\n' "$name" "$states"
			return 0
		fi
		printf 'FAILED    %-14s %s\n' "$name" "${result:-the search did not end: $(grep -m 1 -E 'too small|MEMLIM|rror' "$work/$name/out")}"
		;;
	fails)
		case $result in
		"assertion violated"* | "acceptance cycle")
			printf 'caught    %-5s %s: %s\n' "$model" "${mutant#-DMUTANT_}" "$result"
			return 0
			;;
		esac
		printf 'NOT CAUGHT %-5s %s: %s\n' "$model" "${mutant#-DMUTANT_}" "${result:-nothing was violated}"
		;;
	esac
	return 1
}

for tool in spin "${CC:-cc}"; do
	command -v "$tool" >/dev/null || { echo "there is no $tool here; Debian: apt-get install spin gcc" && exit 1; }
done
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

status=0 running=0
while read -r -a line; do
	if ((${#line[@]} == 0)) || { (($#)) && [[ " $* " != *" ${line[0]} "* ]]; }; then
		continue
	fi
	if ((running == 2)); then
		wait -n || status=1
		running=$((running - 1))
	fi
	search "${line[@]}" &
	running=$((running + 1))
done < <(searches)
while ((running > 0)); do
	wait -n || status=1
	running=$((running - 1))
done
exit "$status"
