/*
 * Grant, takeover and commit of quorate, for exhaustive checking with spin. `npm run model` runs it; docs/MODEL.md says
 * what it covers, which line stands for which function, and how to read a counterexample.
 *
 * Three replicas. Each has a log, whose entries are written with one-sided WRITEs by the one replica that was granted
 * the right, and two planes that run apart from each other: the background plane promises and grants, the replication
 * plane takes over, appends, commits, follows and applies. A replica that is slow, stopped or dead is one that takes no
 * step; its memory is written all the same while its permission stands.
 *
 * Every step is atomic; whatever may happen between two steps of the code is a step boundary here. The model has no
 * time: timeouts, trust and the grant guard decide *when* the code does something, so here it may happen at any moment.
 */

#ifndef EPOCHS
#define EPOCHS 3 /* candidacies in all; at most 7 */
#endif
#ifndef SLOTS
#define SLOTS 3 /* entries that a log holds; at most 5 */
#endif

#define REPLICAS 3
#define NOBODY 3
#define NEXT(me) ((me + 1) % REPLICAS)
#define AFTER_NEXT(me) ((me + 2) % REPLICAS)

/*
 * An entry is the epoch in which it was first appended and the epoch of the entry before it. One leader per epoch
 * writes one entry per slot, so (epoch, slot) names an entry, its value, and everything before it: the epoch of the
 * predecessor stands for the chain hash exactly. 0: never written.
 */
#define ENTRY(epoch, previous) ((epoch) * 8 + (previous))
#define EPOCH_OF(entry) ((entry) / 8)
#define PREVIOUS_OF(entry) ((entry) % 8)

/* A log is packed into one integer: six bits per slot. */
#define SHIFT(slot) (6 * (slot))
#define AT(log, slot) (((log) >> SHIFT(slot)) & 63)
#define WITH(log, slot, entry) (((log) & ~(63 << SHIFT(slot))) | ((entry) << SHIFT(slot)))
/* Epoch of the entry that ends at `lsn`. */
#define EPOCH_BEFORE(log, lsn) ((lsn) == 0 -> 0 : EPOCH_OF(AT(log, (lsn) - 1)))

/* What the leader knows of another replica, in the epoch of its replication plane (class Follower). */
typedef Peer {
  unsigned granted : 1;
  unsigned tailEpoch : 3; /* from the grant block; needed until the noop is appended */
  unsigned tailLsn : 3;
  unsigned acked : 3; /* its log agrees with the leader's up to here, as repair found or WRITEs made it */
};

typedef Replica {
  /* Background plane. */
  unsigned promised : 3; /* highest epoch promised; also the fence: own appends of other epochs are refused */
  unsigned promisedTo : 2;
  unsigned grantEpoch : 3; /* epoch of the grant in force; other than `promised` while a grant is under way */
  unsigned writer : 2; /* who may write the log under that grant; NOBODY if it was given to oneself, or none yet */
  unsigned grantTailEpoch : 3; /* end of the log as the grant block says */
  unsigned grantTailLsn : 3;

  /* The device: a WRITE that passed the permission check and whose bytes are not placed yet. */
  unsigned placing : 1;
  unsigned placingFrom : 2;
  unsigned placingEpoch : 3;
  unsigned placingSlot : 3;
  unsigned placingEntry : 6;

  /* Replication plane. */
  unsigned seen : 3; /* grant that this plane knows of */
  unsigned leading : 3; /* epoch of its takeover or leadership; 0: follower */
  unsigned readingFrom : 2;
  unsigned noopEnd : 3; /* LSN behind the noop of that epoch; 0 until it is appended */
  unsigned tailLsn : 3; /* what it has validated, or appended */
  unsigned tailEpoch : 3;
  unsigned applied : 3;

  int log;
  Peer peer[REPLICAS];
};

Replica r[REPLICAS];

/* Whose candidacy an epoch is: id + 1, 0 if it was not used (epoch.ts: the incarnation is a part of the epoch). */
byte owner[EPOCHS + 1];
/* Commit LSN that the leader of an epoch has published; 0 until it is active. */
byte committed[EPOCHS + 1];

/* Monitors: what was committed, by slot, and by which leader. They observe; no step depends on them. */
int chosen;
byte chosenLsn;
byte activeLeader[EPOCHS + 1];

/*
 * Scratch, of no meaning between steps. Depth first it is left out of the state; spin's breadth-first search, which finds
 * the shortest counterexamples, has no such variables, so there it is cleared at the end of every step.
 */
#ifdef SHORTEST
#define SCRATCH byte
#define CLEAR_SCRATCH s = 0; e = 0; best = 0; bestEpoch = 0; bestLsn = 0; held = 0
#else
#define SCRATCH hidden byte
#define CLEAR_SCRATCH skip
#endif
SCRATCH s;
SCRATCH e;
SCRATCH best;
SCRATCH bestEpoch;
SCRATCH bestLsn;
SCRATCH held;

#ifdef TRACE
#define SAY printf
#else
#define SAY(...) skip
#endif

/* ---- mutations: each breaks one rule and must be caught -------------------------------------------------------- */

#ifdef NO_DRAIN /* revoking does not wait for the WRITE that is being placed */
#define DRAINED(v) true
#else
#define DRAINED(v) (!r[v].placing)
#endif

#ifdef NO_FENCE /* the own append does not check whether the own log was granted away */
#define FENCE_ADMITS(i) true
#else
#define FENCE_ADMITS(i) (r[i].promised == r[i].leading)
#endif

#ifdef GRANT_WITHOUT_PROMISE /* a voter forgets what it promised, and grants an earlier epoch after a later one */
#define MAY_PROMISE(v, c, ep) ((ep) != r[v].promised)
#else
#ifdef EPOCH_SHARED /* epochs are bare counters that two candidates may both use, and a voter grants one to both */
#define MAY_PROMISE(v, c, ep) ((ep) > r[v].promised || ((ep) == r[v].promised && r[v].promisedTo != (c)))
#else
#define MAY_PROMISE(v, c, ep) ((ep) > r[v].promised)
#endif
#endif

#ifdef EPOCH_SHARED
#define UNUSED(ep) true
#else
#define UNUSED(ep) (owner[ep] == 0)
#endif

#ifdef PERMISSION_OF_LINK /* a grant opens the link as it is: what was posted under an earlier grant passes, too */
#define PERMITTED(v, c) (r[v].writer == (c))
#else
#define PERMITTED(v, c) (r[v].writer == (c) && r[v].grantEpoch == r[c].leading)
#endif

#ifdef ELECT_ON_MINORITY /* a candidate takes over with its own vote */
#define HAS_MAJORITY(i) true
#else
#define HAS_MAJORITY(i) (r[i].peer[NEXT(i)].granted || r[i].peer[AFTER_NEXT(i)].granted)
#endif

#ifdef BEST_BY_LENGTH /* the longest log is adopted, not the one with the latest epoch */
#define BETTER(epochA, lsnA, epochB, lsnB) ((lsnA) > (lsnB))
#else
#define BETTER(epochA, lsnA, epochB, lsnB) ((epochA) > (epochB) || ((epochA) == (epochB) && (lsnA) > (lsnB)))
#endif

#ifdef COUNT_OLD_EPOCH /* entries of earlier epochs count as committed as soon as a majority holds them */
#define COUNTS(i, p) (r[i].peer[p].granted)
#define COMMITTABLE(i, lsn) true
#else
#define COUNTS(i, p) (r[i].peer[p].granted && r[i].peer[p].acked >= r[i].noopEnd)
#define COMMITTABLE(i, lsn) ((lsn) >= r[i].noopEnd)
#endif

#ifdef APPLY_BEFORE_OWN_ENTRY /* a follower applies before an entry of the current epoch vouches for its log */
#define VOUCHED(i) true
#else
#define VOUCHED(i) (r[i].tailEpoch == r[i].seen)
#endif

/* ---- walking a log --------------------------------------------------------------------------------------------- */

#define VALID(entry, previousEpoch, epochMax) \
  ((entry) != 0 && EPOCH_OF(entry) <= (epochMax) && PREVIOUS_OF(entry) == (previousEpoch))

/* From (e, s) to the end of the valid log (LogScanner.scan). */
inline scan(i, epochMax) {
  do
  :: s < SLOTS && VALID(AT(r[i].log, s), e, epochMax) ->
     e = EPOCH_OF(AT(r[i].log, s));
     s++
  :: else -> break
  od
}

inline forgetTail(i) {
  r[i].tailLsn = r[i].applied;
  r[i].tailEpoch = EPOCH_BEFORE(r[i].log, r[i].applied)
}

inline extendTail(i, epochMax) {
  s = r[i].tailLsn;
  e = r[i].tailEpoch;
  scan(i, epochMax);
  r[i].tailLsn = s;
  r[i].tailEpoch = e
}

inline forgetPeer(i, p) {
  r[i].peer[p].granted = 0;
  r[i].peer[p].tailEpoch = 0;
  r[i].peer[p].tailLsn = 0;
  r[i].peer[p].acked = 0
}

/* State machine safety, and gap-free: what is applied at a slot is what was committed there. */
inline applyNext(i) {
  assert(r[i].applied < chosenLsn); /* only what was committed is applied */
  assert(AT(r[i].log, r[i].applied) == AT(chosen, r[i].applied)); /* state machine safety */
  SAY("replica %d applies slot %d: entry of epoch %d\n", i, r[i].applied, EPOCH_OF(AT(r[i].log, r[i].applied)));
#ifdef REACH_FOLLOWER_APPLIES_ALL
  assert(r[i].leading != 0 || r[i].applied + 1 < SLOTS || r[i].seen < EPOCHS); /* witness */
#endif
  r[i].applied++
}

/* Into `held`: how far leaders of epochs up to this one have published that they committed. */
inline findCommitted(epochMax) {
  held = 0;
  e = 1;
  do
  :: e <= epochMax ->
     if
     :: committed[e] > held -> held = committed[e]
     :: else
     fi;
     e++
  :: else -> break
  od
}

/* ---- background plane: promise, grant -------------------------------------------------------------------------- */

/* First half of grant(): raise the fence and record the promise, before anything is taken away. */
inline promise(v, c, ep) {
#ifndef GRANT_WITHOUT_PROMISE
  assert(ep >= r[v].promised); /* promises never decrease */
#endif
#ifdef EPOCH_SHARED
  if
  :: ep == r[v].grantEpoch -> r[v].grantEpoch = 0
  :: else
  fi;
#endif
  r[v].promised = ep;
  r[v].promisedTo = c;
  SAY("replica %d promises epoch %d to replica %d\n", v, ep, c)
}

/* Second half: revoke and drain, read the tail that nobody can write now, let the candidate in, publish the grant. */
inline grant(v) {
  e = EPOCH_BEFORE(r[v].log, r[v].applied);
  s = r[v].applied;
  scan(v, r[v].promised);
  r[v].grantEpoch = r[v].promised;
  if
  :: r[v].promisedTo == v -> /* its own: the replication plane looks at the log itself */
     r[v].writer = NOBODY;
     r[v].grantTailEpoch = 0;
     r[v].grantTailLsn = 0
  :: else ->
     r[v].writer = r[v].promisedTo;
     r[v].grantTailEpoch = e;
     r[v].grantTailLsn = s
  fi;
  SAY("replica %d grants epoch %d to replica %d; its log ends at %d, epoch %d\n", v, r[v].promised, r[v].promisedTo, s, e)
}

/* Whether candidate c has asked for votes in an epoch: it granted itself. A request may be found later, too. */
#define ASKED(c, ep) \
  (owner[ep] == (c) + 1 && ((r[c].grantEpoch == (ep) && r[c].writer == NOBODY) || r[c].promised > (ep)))

/* ---- replication plane: takeover, leading ---------------------------------------------------------------------- */

/*
 * poll() finds that there was a grant: a takeover or leadership of another epoch is over, nothing beyond the applied LSN
 * is known, and if the grant is the own candidacy's, a takeover may begin.
 */
inline notice(i) {
  r[i].leading = 0;
  r[i].noopEnd = 0;
  r[i].readingFrom = NOBODY;
  forgetPeer(i, NEXT(i));
  forgetPeer(i, AFTER_NEXT(i));
  r[i].seen = r[i].grantEpoch;
  forgetTail(i);
  if
  :: r[i].writer == NOBODY ->
     r[i].leading = r[i].seen;
     extendTail(i, r[i].seen)
  :: else
  fi;
  SAY("replica %d notices the grant of epoch %d\n", i, r[i].seen)
}

/* beginRepair(): where the log of p diverges, found by epochs. Everything from there on is written. */
inline beginRepair(i, p) {
#ifdef SKIP_TAIL_REPAIR
  s = (r[i].peer[p].tailLsn < r[i].tailLsn -> r[i].peer[p].tailLsn : r[i].tailLsn);
#else
  assert(r[p].grantEpoch != r[i].leading || r[p].applied <= r[i].tailLsn); /* no voter applied more */
  s = 0;
  do
  :: s < r[i].tailLsn && s < r[i].peer[p].tailLsn && EPOCH_OF(AT(r[i].log, s)) == EPOCH_OF(AT(r[p].log, s)) -> s++
  :: else -> break
  od;
#endif
  r[i].peer[p].acked = s;
  r[i].peer[p].tailEpoch = 0;
  r[i].peer[p].tailLsn = 0
}

/* takeGrants() */
inline takeGrant(i, p) {
  r[i].peer[p].granted = 1;
  r[i].peer[p].tailEpoch = r[p].grantTailEpoch;
  r[i].peer[p].tailLsn = r[p].grantTailLsn;
  SAY("replica %d takes the grant of replica %d for epoch %d\n", i, p, r[i].leading);
  if
  :: r[i].noopEnd != 0 -> beginRepair(i, p)
  :: else
  fi
}

/* advanceTakeover(): the best log among the granted ones, if it is better than the own. */
inline consider(i, p) {
  if
  :: r[i].peer[p].granted && BETTER(r[i].peer[p].tailEpoch, r[i].peer[p].tailLsn, bestEpoch, bestLsn) ->
     best = p;
     bestEpoch = r[i].peer[p].tailEpoch;
     bestLsn = r[i].peer[p].tailLsn
  :: else
  fi
}

/* One entry of the better log is read, validated, and appended under the fence; or, if none is better, the noop is. */
inline adoptOrAppendNoop(i) {
  best = NOBODY;
  bestEpoch = r[i].tailEpoch;
  bestLsn = r[i].tailLsn;
#ifndef BEST_LOG_NOT_ADOPTED
  consider(i, 0);
  consider(i, 1);
  consider(i, 2);
#endif
  if
  :: best != NOBODY ->
     if
     :: best != r[i].readingFrom ->
        r[i].readingFrom = best;
        forgetTail(i)
     :: else
     fi;
     s = r[i].tailLsn;
     if
     :: s < bestLsn && VALID(AT(r[best].log, s), r[i].tailEpoch, r[i].leading) ->
        r[i].log = WITH(r[i].log, s, AT(r[best].log, s));
        r[i].tailEpoch = EPOCH_OF(AT(r[best].log, s));
        r[i].tailLsn = s + 1;
        SAY("replica %d adopts slot %d of replica %d: entry of epoch %d\n", i, s, best, r[i].tailEpoch)
     :: else -> skip /* that log was granted to another meanwhile: this takeover comes to nothing */
     fi
  :: else ->
     if
     :: r[i].tailLsn < SLOTS ->
        /* Leader completeness: what earlier epochs committed is in this log. */
        findCommitted(r[i].leading - 1);
        s = 0;
        do
        :: s < held ->
           assert(s < r[i].tailLsn && AT(r[i].log, s) == AT(chosen, s)); /* leader completeness: new leader */
           s++
        :: else -> break
        od;
        s = r[i].tailLsn;
        r[i].log = WITH(r[i].log, s, ENTRY(r[i].leading, r[i].tailEpoch));
        r[i].tailEpoch = r[i].leading;
        r[i].tailLsn = s + 1;
        r[i].noopEnd = s + 1;
        r[i].readingFrom = NOBODY;
        SAY("replica %d appends the noop of epoch %d at slot %d\n", i, r[i].leading, s);
        if
        :: r[i].peer[NEXT(i)].granted -> beginRepair(i, NEXT(i))
        :: else
        fi;
        if
        :: r[i].peer[AFTER_NEXT(i)].granted -> beginRepair(i, AFTER_NEXT(i))
        :: else
        fi
     :: else
     fi
  fi
}

/* propose() and the append of flush(), which is fenced. */
inline appendCommand(i) {
  s = r[i].tailLsn;
  r[i].log = WITH(r[i].log, s, ENTRY(r[i].leading, r[i].tailEpoch));
  r[i].tailEpoch = r[i].leading;
  r[i].tailLsn = s + 1;
  SAY("replica %d appends a command of epoch %d at slot %d\n", i, r[i].leading, s)
}

/* LSN that a majority holds: the leader's own log and the better one of the two others. */
inline findHeld(i) {
#ifdef COMMIT_ON_MINORITY
  held = r[i].tailLsn;
#else
  held = 0;
  if
  :: COUNTS(i, NEXT(i)) -> held = r[i].peer[NEXT(i)].acked
  :: else
  fi;
  if
  :: COUNTS(i, AFTER_NEXT(i)) && r[i].peer[AFTER_NEXT(i)].acked > held -> held = r[i].peer[AFTER_NEXT(i)].acked
  :: else
  fi;
  if
  :: held > r[i].tailLsn -> held = r[i].tailLsn
  :: else
  fi;
#endif
}

/* advanceCommit(), and applyCommitted(), which it calls. */
inline advanceCommit(i) {
  findHeld(i);
  if
  :: COMMITTABLE(i, held) && held > committed[r[i].leading] ->
     if
     :: committed[r[i].leading] == 0 ->
        assert(activeLeader[r[i].leading] == 0 || activeLeader[r[i].leading] == i + 1); /* one leader per epoch */
        activeLeader[r[i].leading] = i + 1
     :: else
     fi;
     committed[r[i].leading] = held;
#ifdef REACH_LEADER_OF_LAST_EPOCH
     assert(r[i].leading < EPOCHS || chosenLsn == 0 || EPOCH_OF(AT(chosen, 0)) == EPOCHS); /* witness */
#endif
     SAY("replica %d commits up to %d in epoch %d\n", i, held, r[i].leading);
     /* What it acknowledges to its clients is what stands in its log. */
     s = (r[i].noopEnd == 0 -> held : r[i].noopEnd - 1);
     do
     :: s < held ->
        assert(EPOCH_OF(AT(r[i].log, s)) == r[i].leading); /* what a leader acknowledges stands in its log */
        s++
     :: else -> break
     od;
     /* Nothing that was committed changes. */
     s = 0;
     do
     :: s < held ->
        if
        :: s < chosenLsn -> assert(AT(r[i].log, s) == AT(chosen, s)) /* what was committed does not change */
        :: else -> chosen = WITH(chosen, s, AT(r[i].log, s)); chosenLsn = s + 1
        fi;
        s++
     :: else -> break
     od;
     /* Leaders of later epochs that are at work already have it, also if it was counted only now. */
     completeness(i, NEXT(i));
     completeness(i, AFTER_NEXT(i));
     do
     :: r[i].applied < held -> applyNext(i)
     :: else -> break
     od
  :: else
  fi
}

inline completeness(i, p) {
  if
  :: r[p].leading > r[i].leading && r[p].noopEnd != 0 && r[p].promised == r[p].leading ->
     s = 0;
     do
     :: s < held ->
        assert(s < r[p].tailLsn && AT(r[p].log, s) == AT(chosen, s)); /* leader completeness: later leader */
        s++
     :: else -> break
     od
  :: else
  fi
}

/* ---- replication plane: following ------------------------------------------------------------------------------ */

/* follow(): validate what arrived; begin anew where repair has changed it; apply what is committed and vouched for. */
inline follow(i) {
  best = r[i].tailLsn;
  extendTail(i, r[i].seen);
  if
  :: r[i].tailEpoch != r[i].seen && r[i].tailLsn == best && best != r[i].applied -> forgetTail(i)
  :: else
  fi;
  findCommitted(r[i].seen);
  if
  :: VOUCHED(i) && r[i].applied < held && r[i].applied < r[i].tailLsn -> applyNext(i)
  :: else
  fi
}

/* ---- device ---------------------------------------------------------------------------------------------------- */

#define PENDING_WRITE(c, v) \
  (r[c].leading != 0 && r[c].noopEnd != 0 && r[c].peer[v].granted && r[c].peer[v].acked < r[c].tailLsn)

/* The responder's device admits the next WRITE of replica c. It is read from the log of c only now. */
inline admit(v, c) {
  r[v].placing = 1;
  r[v].placingFrom = c;
  r[v].placingEpoch = r[c].leading;
  r[v].placingSlot = r[c].peer[v].acked;
  r[v].placingEntry = AT(r[c].log, r[c].peer[v].acked)
}

/* Its bytes are placed, and it completes. */
inline place(v) {
#ifndef LATE_WRITES_UNWATCHED
  assert(r[v].writer == r[v].placingFrom && r[v].grantEpoch == r[v].placingEpoch); /* no late WRITE */
#endif
  assert(r[v].placingSlot >= r[v].applied || r[v].placingEntry == AT(r[v].log, r[v].placingSlot)); /* applied stays */
  r[v].log = WITH(r[v].log, r[v].placingSlot, r[v].placingEntry);
  SAY("a write of replica %d in epoch %d lands at replica %d, slot %d: entry of epoch %d\n", r[v].placingFrom,
      r[v].placingEpoch, v, r[v].placingSlot, EPOCH_OF(r[v].placingEntry));
  if
  :: r[r[v].placingFrom].leading == r[v].placingEpoch && r[r[v].placingFrom].peer[v].granted &&
     r[r[v].placingFrom].peer[v].acked == r[v].placingSlot ->
     r[r[v].placingFrom].peer[v].acked = r[v].placingSlot + 1
  :: else
  fi;
  r[v].placing = 0;
  r[v].placingFrom = 0;
  r[v].placingEpoch = 0;
  r[v].placingSlot = 0;
  r[v].placingEntry = 0
}

/* ---- the replicas ---------------------------------------------------------------------------------------------- */

/*
 * Replicas differ in nothing but their names, so those are given in the order of the first candidacies: this leaves out
 * only runs that are others renamed.
 */
#define WAS_CANDIDATE(i) (owner[1] == (i) + 1 || owner[2] == (i) + 1 || OWNS_3(i) || OWNS_4(i))
#if EPOCHS >= 3
#define OWNS_3(i) (owner[3] == (i) + 1)
#else
#define OWNS_3(i) false
#endif
#if EPOCHS >= 4
#define OWNS_4(i) (owner[4] == (i) + 1)
#else
#define OWNS_4(i) false
#endif
#ifdef PAST_EPOCH
#define NAME_IS_FREE(i) true
#else
#define NAME_IS_FREE(i) (i == 0 || WAS_CANDIDATE(i - 1))
#endif

#define CANDIDACY(me, ep) \
  :: d_step { UNUSED(ep) && NAME_IS_FREE(me) && ep > r[me].promised -> \
     owner[ep] = me + 1; \
     promise(me, me, ep); \
     CLEAR_SCRATCH }
#define VOTE(me, c, ep) :: d_step { ASKED(c, ep) && MAY_PROMISE(me, c, ep) -> promise(me, c, ep); CLEAR_SCRATCH }

proctype replica(byte me) {
end:
  do
  /* Background plane. becomeCandidate() takes an epoch above its promise; answerRequests() an asked-for one. */
  CANDIDACY(me, 1)
  CANDIDACY(me, 2)
  VOTE(me, NEXT(me), 1)
  VOTE(me, AFTER_NEXT(me), 1)
  VOTE(me, NEXT(me), 2)
  VOTE(me, AFTER_NEXT(me), 2)
#if EPOCHS >= 3
  CANDIDACY(me, 3)
  VOTE(me, NEXT(me), 3)
  VOTE(me, AFTER_NEXT(me), 3)
#endif
#if EPOCHS >= 4
  CANDIDACY(me, 4)
  VOTE(me, NEXT(me), 4)
  VOTE(me, AFTER_NEXT(me), 4)
#endif
  :: d_step { r[me].grantEpoch != r[me].promised && DRAINED(me) -> grant(me); CLEAR_SCRATCH }

  /* Replication plane. */
  :: d_step { r[me].seen != r[me].grantEpoch && r[me].grantEpoch != 0 -> notice(me); CLEAR_SCRATCH }
  :: d_step {
       r[me].leading != 0 && r[me].grantEpoch == r[me].leading && !r[me].peer[NEXT(me)].granted &&
       r[NEXT(me)].grantEpoch == r[me].leading && r[NEXT(me)].writer == me -> takeGrant(me, NEXT(me)); CLEAR_SCRATCH
     }
  :: d_step {
       r[me].leading != 0 && r[me].grantEpoch == r[me].leading && !r[me].peer[AFTER_NEXT(me)].granted &&
       r[AFTER_NEXT(me)].grantEpoch == r[me].leading && r[AFTER_NEXT(me)].writer == me ->
       takeGrant(me, AFTER_NEXT(me)); CLEAR_SCRATCH
     }
  :: d_step {
       r[me].leading != 0 && r[me].noopEnd == 0 && HAS_MAJORITY(me) && FENCE_ADMITS(me) ->
       adoptOrAppendNoop(me); CLEAR_SCRATCH
     }
  :: d_step {
       r[me].leading != 0 && committed[r[me].leading] != 0 && r[me].tailLsn < SLOTS && FENCE_ADMITS(me) ->
       appendCommand(me); CLEAR_SCRATCH
     }
  :: d_step { r[me].leading != 0 && r[me].noopEnd != 0 -> advanceCommit(me); CLEAR_SCRATCH }
  :: d_step { r[me].leading == 0 && r[me].seen != 0 -> follow(me); CLEAR_SCRATCH }

  /* Its device, as the target of WRITEs. */
  :: d_step {
       !r[me].placing && PENDING_WRITE(NEXT(me), me) && PERMITTED(me, NEXT(me)) -> admit(me, NEXT(me)); CLEAR_SCRATCH
     }
  :: d_step {
       !r[me].placing && PENDING_WRITE(AFTER_NEXT(me), me) && PERMITTED(me, AFTER_NEXT(me)) ->
       admit(me, AFTER_NEXT(me)); CLEAR_SCRATCH
     }
  :: d_step { r[me].placing -> place(me); CLEAR_SCRATCH }
  od
}

init {
  d_step {
    s = 0;
    do
    :: s < REPLICAS -> r[s].writer = NOBODY; r[s].readingFrom = NOBODY; s++
    :: else -> break
    od;
#ifdef PAST_EPOCH
    /* Epoch 1 is under way: replica 0 has the vote of replica 1 and its noop in its own log, and nowhere else. */
    owner[1] = 1;
    r[0].promised = 1;
    r[0].grantEpoch = 1;
    r[0].seen = 1;
    r[0].leading = 1;
    r[0].log = ENTRY(1, 0);
    r[0].tailLsn = 1;
    r[0].tailEpoch = 1;
    r[0].noopEnd = 1;
    r[0].peer[1].granted = 1;
    r[1].promised = 1;
    r[1].grantEpoch = 1;
    r[1].seen = 1;
    r[1].writer = 0;
#endif
    CLEAR_SCRATCH
  }
  atomic {
    run replica(0);
    run replica(1);
    run replica(2)
  }
}
