// Ways to break messages and what replicas do with them, for clusters whose clients propose at any replica.

import { payloadBytesMax } from '../consensus/limits.js';
import { MessageRingReader } from '../consensus/message-ring.js';
import type { Mutation } from './mutations.js';
import { replace } from './replace-method.js';
import { SimForwarding } from './sim-forwarding.js';
import type { SimOptions } from './sim-options.js';

/** Busy clients that propose anywhere, with commands so large that the rings turn, and leaders that stand still. */
function forwarding(options: SimOptions): SimOptions {
  const logBytes = 256 * 1024;
  const { faults, pace } = options;
  return {
    ...options,
    ...{ logBytes, payloadBytesMax: payloadBytesMax(logBytes), payloadsAreMostlySmall: false },
    ...{ forwarding: 1, sessionless: 0.5, clients: 6, thinkMax_ns: 10e6 * pace, barrierReads: 0, readers: 0 },
    faults: {
      ...faults,
      ...{ interval_ns: 300e6 * pace, leaderBias: 0.7 },
      weights: { ...faults.weights, pause: 2, stallMain: 1, partition: 1, crash: 0.5 },
    },
  };
}

export const MESSAGE_MUTATIONS: readonly Mutation[] = [
  {
    name: 'message-of-earlier-lap',
    breaks: 'a message that an earlier lap left in the ring is taken for the next one',
    seedsMax: 40,
    replicas: 3,
    adjust: forwarding,
    install: () => {
      // Once by each reader: everything in a ring was whole once, and the reader would go round and round.
      const taken = new WeakSet<object>();
      return replace(
        MessageRingReader.prototype,
        'isNext',
        (original) =>
          function (position: number, number: number) {
            if (original.call(this, position, number)) return true;
            if (number === 0 || taken.has(this)) return false;
            taken.add(this);
            return true;
          },
      );
    },
  },
  {
    name: 'message-taken-torn',
    breaks: 'a message is taken when its header is there, whether or not all of its bytes are',
    seedsMax: 40,
    replicas: 3,
    adjust: (options) => {
      const adjusted = forwarding(options);
      return { ...adjusted, network: { ...adjusted.network, tearProbability: 0.5, tearGapMax_ns: 5e6 } };
    },
    install: () => replace(MessageRingReader.prototype, 'isWhole', () => () => true),
  },
  {
    name: 'forwarded-again-without-session',
    breaks: 'a forwarded proposal of unknown outcome is proposed again although it has no session',
    seedsMax: 60,
    replicas: 3,
    adjust: (options) => ({ ...forwarding(options), sessionless: 1 }),
    install: () => replace(SimForwarding.prototype, 'maySendAgain', () => () => true),
  },
];
