// Which threads have V8 compile functions at their first call: a setting of the whole process, which outlasts a thread that is
// terminated. No JavaScript runs at the end of that; the addon sees it.
import { addon } from './load-addon.js';

/** The calling thread wants it from now on, once more. True if no thread did: then V8 is to be told. */
export function beginFirstCalls(): boolean {
  return addon.beginFirstCalls();
}

/** The calling thread does not want it any more, once. True if no thread does: then V8 is to be told. */
export function endFirstCalls(): boolean {
  return addon.endFirstCalls();
}
