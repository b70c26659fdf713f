// Makes a process old: V8 has collected its whole heap a number of times, as within minutes of a busy service, and has forgotten
// code that has not run meanwhile. V8 does not forget by gc(), so there has to be garbage.
import { constants, type NodeGCPerformanceDetail, PerformanceObserver } from 'node:perf_hooks';

/** So large that it is not collected with the young objects. */
const GARBAGE_BYTES = 8_000_000;

/** Makes garbage until this thread's heap was collected so often; other work has its turns meanwhile. */
export async function growOld(collections: number): Promise<void> {
  let left = collections;
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      const { detail } = entry as unknown as { readonly detail: NodeGCPerformanceDetail };
      if (detail.kind === constants.NODE_PERFORMANCE_GC_MAJOR) left--;
    }
  });
  observer.observe({ entryTypes: ['gc'] });
  while (left > 0) {
    new ArrayBuffer(GARBAGE_BYTES);
    await new Promise((resolve) => setImmediate(resolve));
  }
  observer.disconnect();
}
