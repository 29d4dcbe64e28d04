/* One operation across shards (rename of a file, of a directory over an empty one, an exchange), run by
 * its client, which may die or stop anywhere, and by two that take it for dead; others change the names
 * meanwhile. README has the words. Every atomic block is one call in one shard of functions_tx.lua.
 *
 * Knobs that break it: NO_FENCE NO_TAKE NO_DECISION NO_TARGET_MARK */

#define NONE 0
#define YES  1
#define NO   2

#define MOVED 1 /* objects: what moves, what is at the target name, what others make */
#define OLD   2
#define NEW_A 3
#define NEW_B 4

#define IN_A 1 /* directories */
#define IN_B 2
#define IN_C 3
#define IN_D 4

#define CHANGES 3 /* by others */

mtype = { FILE, DIR, EXCHANGE }
mtype kind;

byte a = MOVED, b, c, d; /* which object has the name in each directory */
bool mark_a, mark_b;
byte parent[5];
bool born[5], gone[5], filled; /* filled: there is something in OLD */

byte intent;	 /* shard A: 0 none, 1 there, 2 taken by others */
byte first;	 /* shard A: what the first step was answered, kept after a taken intent ended */
bool fenced;	 /* shard A: the session was taken for dead */
bool target;	 /* shard B: its mark is this transaction's */
byte decision, back; /* shard B: and what goes the other way */
byte removal;	 /* shard of OLD: decision whether it goes */
bool told, told_back;
bool lock;	 /* shard 0 */

inline refuse(stays)
{
	atomic {
#ifdef NO_DECISION
		result = NO;
#else
		if
		:: decision != NONE -> result = decision; other = back
		:: decision == NONE && target && !stays -> result = NONE
		:: else ->
			if
			:: target -> target = false; mark_b = false
			:: else
			fi;
			decision = NO;
			result = NO
		fi
#endif
	}
}

proctype client(bool cleans, dies)
{
	byte moved, result = NONE, other = 0;
	bool seen, mine, removed;

	/* Every step may be the last one: see `dies` at each. */
	if
	:: cleans ->
		atomic {
#ifndef NO_FENCE
			fenced = true;
#endif
			if
			:: intent == 0 -> goto closed
			:: else ->
#ifndef NO_TAKE
				intent = 2
#else
				skip
#endif
			fi
		}
		if
		:: dies -> goto dead
		:: true
		fi;
		atomic {
			if
			:: intent == 0 -> goto closed
			:: else -> moved = a
			fi
		}
	:: else ->
		atomic {
			if
			:: fenced -> goto dead
			:: else -> lock = true
			fi
		}
		if
		:: dies -> goto dead
		:: true
		fi;
		atomic {
			if
			:: fenced -> goto dead
			:: !fenced && a == 0 -> goto unlock
			:: else -> mark_a = true; intent = 1; moved = a
			fi
		}
		if
		:: dies -> goto dead
		:: true
		:: true -> /* the reply is lost: the step is sent again */
			atomic {
				if
				:: intent != 0 -> moved = a
				:: intent == 0 && first != 0 -> moved = first
				:: intent == 0 && first == 0 && fenced -> goto dead
				:: else -> /* looks new to the server */
					if
					:: a == 0 -> goto unlock
					:: else -> mark_a = true; intent = 1; moved = a
					fi
				fi
			}
		fi
	fi;

	if
	:: true
	:: true -> refuse(false) /* some check says no */
	fi;

	do
	:: result != NONE -> break
	:: else ->
		if
		:: dies -> goto dead
		:: true
		fi;
		atomic { /* the step that decides */
			if
			:: decision != NONE -> result = decision; other = back
			:: decision == NONE && target && !removed
			:: decision == NONE && target && removed ->
				b = moved; mark_b = false; target = false; decision = YES; result = YES
			:: decision == NONE && !target && kind == EXCHANGE ->
				if
				:: b == 0 -> decision = NO
				:: else -> back = b; other = b; b = moved; decision = YES
				fi;
				result = decision
			:: decision == NONE && !target && kind == DIR && b == OLD ->
#ifdef NO_TARGET_MARK
				if
				:: removed -> b = moved; decision = YES; result = YES
				:: else
				fi
#else
				skip
#endif
			:: decision == NONE && !target && kind == DIR && b == NEW_B -> decision = NO; result = NO
			:: else ->
				if
				:: b != 0 -> gone[b] = true
				:: else
				fi;
				b = moved; decision = YES; result = YES
			fi
		}
		if
		:: result == NONE ->
			atomic { /* aim */
				mine = false;
				if
				:: decision == NONE && b == OLD ->
#ifndef NO_TARGET_MARK
					mark_b = true;
					target = true;
#endif
					mine = true
				:: else
				fi
			}
			if
			:: dies -> goto dead
			:: true
			fi;
			if
			:: mine ->
				atomic {
					if
					:: removal != NONE
					:: removal == NONE && filled -> removal = NO
					:: else -> removal = YES; gone[OLD] = true
					fi;
					removed = removal == YES
				}
				if
				:: !removed -> refuse(true)
				:: else
				fi
			:: else
			fi
		:: else
		fi
	od;

	if
	:: dies -> goto dead
	:: true
	fi;
	if
	:: result == YES ->
		atomic {
			if
			:: !told -> told = true; parent[moved] = IN_B
			:: else
			fi
		}
		if
		:: dies -> goto dead
		:: true
		fi;
		if
		:: kind == EXCHANGE ->
			atomic {
				if
				:: !told_back -> told_back = true; parent[other] = IN_A
				:: else
				fi
			}
		:: else
		fi
	:: else
	fi;
	if
	:: dies -> goto dead
	:: true
	fi;
	atomic { /* the end */
		if
		:: intent == 0 -> seen = true
		:: else ->
			if
			:: intent == 2 -> first = moved; seen = true
			:: else
			fi;
			intent = 0;
			mark_a = false;
			if
			:: result == YES -> a = other
			:: else
			fi
		fi
	}
	if
	:: dies -> goto dead
	:: true
	fi;
	if
	:: !seen ->
		atomic { decision = NONE; back = 0 }
		removal = NONE;
		told = false;
		told_back = false
	:: else
	fi;
unlock:
	lock = false;
closed:
	if
	:: cleans -> lock = false /* with the session */
	:: else
	fi;
dead:
	skip
}

proctype others()
{
	byte n = 0;
	do
	:: n == CHANGES -> break
	:: n < CHANGES -> n++;
		if
		:: atomic { !mark_b && b != 0 && c == 0 && !lock -> c = b; b = 0; parent[c] = IN_C }
		:: atomic { !mark_a && a != 0 && d == 0 && !lock -> d = a; a = 0; parent[d] = IN_D }
		:: atomic { !mark_a && a == 0 && !born[NEW_A] -> a = NEW_A; born[a] = true; parent[a] = IN_A }
		:: atomic { !mark_b && b == 0 && !born[NEW_B] -> b = NEW_B; born[b] = true; parent[b] = IN_B }
		:: atomic { born[OLD] && !gone[OLD] -> filled = true }
		:: break
		fi
	od
}

init {
	byte k;
	atomic {
		if
		:: kind = FILE
		:: kind = DIR
		:: kind = EXCHANGE
		fi;
		born[MOVED] = true;
		parent[MOVED] = IN_A;
		if
		:: b = OLD; born[OLD] = true; parent[OLD] = IN_B
		:: b = 0
		fi;
		run client(false, true);
		run client(true, true);
		run client(true, false);
		run others()
	}
	_nr_pr == 1;
	assert(intent == 0 && !target && !mark_a && !mark_b && !lock);
	for (k : 1 .. 4) { /* every object has one name, and what is gone has none */
		assert((a == k) + (b == k) + (c == k) + (d == k) == (born[k] && !gone[k]));
		assert(a != k || parent[k] == IN_A);
		assert(b != k || parent[k] == IN_B);
		assert(c != k || parent[k] == IN_C);
		assert(d != k || parent[k] == IN_D)
	}
}
