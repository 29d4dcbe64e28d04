/* Two directories, each moved into the other, by clients that may die or stop anywhere, each with one that
 * takes it for dead: no loop, and both moves are finished. Knobs that break it: LOCK_EXPIRES NO_FENCE */

#define NONE 0
#define YES  1
#define NO   2

byte parent[3];	  /* of directories 1 and 2: 0 is the root */
byte at[3];	  /* where the name is: 0 the root's, else in the other directory */
bool mark[3], fenced[3];
byte intent[3], decision[3];
bool told[3];
byte lock; /* 0, or the transaction that has it */

inline take_lock()
{
	atomic {
		(lock == 0 || lock == me || (fenced[me] && !cleans)
#ifdef LOCK_EXPIRES
		 || true
#endif
		) ->
		if
		:: lock != me && fenced[me] && !cleans -> goto dead
		:: else -> lock = me
		fi
	}
}

proctype client(byte me; bool cleans, dies)
{
	byte result = NONE, up;
	bool seen;
	byte there = 3 - me;
	if
	:: cleans ->
		atomic {
#ifndef NO_FENCE
			fenced[me] = true;
#endif
			if
			:: intent[me] == 0 -> goto closed
			:: else -> intent[me] = 2
			fi
		}
		atomic {
			if
			:: intent[me] == 0 -> goto closed
			:: else
			fi
		}
		take_lock()
	:: else ->
		take_lock();
		if
		:: dies -> goto dead
		:: true
		fi;
		atomic {
			if
			:: fenced[me] -> goto dead
			:: else -> mark[me] = true; intent[me] = 1
			fi
		}
	fi;
	if
	:: dies -> goto dead
	:: true
	fi;
	/* Is the new parent below what moves? Step by step. */
	up = there;
	do
	:: up == me ->
		atomic {
			if
			:: decision[me] == NONE -> decision[me] = NO
			:: else
			fi;
			result = decision[me]
		}
		break
	:: up == 0 -> break
	:: else -> up = parent[up]
	od;
	if
	:: dies -> goto dead
	:: true
	fi;
	if
	:: result == NONE ->
		atomic {
			if
			:: decision[me] == NONE -> decision[me] = YES; at[me] = there
			:: else
			fi;
			result = decision[me]
		}
	:: else
	fi;
	if
	:: dies -> goto dead
	:: true
	fi;
	if
	:: result == YES ->
		atomic {
			if
			:: !told[me] -> told[me] = true; parent[me] = there
			:: else
			fi
		}
	:: else
	fi;
	if
	:: dies -> goto dead
	:: true
	fi;
	atomic {
		seen = intent[me] != 1;
		intent[me] = 0;
		mark[me] = false
	}
	if
	:: !seen ->
		decision[me] = NONE;
		told[me] = false
	:: else
	fi;
	atomic {
		if
		:: lock == me -> lock = 0
		:: else
		fi
	}
closed:
	atomic {
		if
		:: cleans && lock == me -> lock = 0
		:: else
		fi
	}
dead:
	skip
}

init {
	atomic {
		run client(1, false, true);
		run client(2, false, true);
		run client(1, true, false);
		run client(2, true, false)
	}
	_nr_pr == 1;
	assert(intent[1] == 0 && intent[2] == 0 && !mark[1] && !mark[2] && lock == 0);
	assert(at[1] == parent[1] && at[2] == parent[2]);
	assert(!(at[1] == 2 && at[2] == 1))
}
