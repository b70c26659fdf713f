// The order of the test files. Where no earlier run is known, as in a fresh clone, vitest begins with the largest files; those
// that take longest are small, and of two processors one would stand idle at the end.
import { BaseSequencer } from 'vitest/node';

/** The longest first. Where they are missing or renamed, only time is lost. */
const LONGEST = [
  'test/nemesis/durable.test.ts',
  'test/sim/simulation.test.ts',
  'test/nemesis/nemesis.test.ts',
  'test/sim/majority-loss.test.ts',
  'test/sim/disk-failures.test.ts',
  'test/sim/returns.test.ts',
  'test/model/model.test.ts',
];

export class LongestFirst extends BaseSequencer {
  /** @param {import('vitest/node').TestSpecification[]} files */
  async sort(files) {
    const place = ({ moduleId }) => {
      const index = LONGEST.findIndex((path) => moduleId.endsWith(`/${path}`));
      return index < 0 ? LONGEST.length : index;
    };
    return (await super.sort(files)).sort((a, b) => place(a) - place(b));
  }
}
