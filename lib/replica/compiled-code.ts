// V8 forgets what it compiled of functions that have not run while the whole heap was collected a few times, and what it
// knows of objects of which none is there: in a busy service, within minutes, that is all of a takeover, rehearsed at start.
// The next takeover would have to learn it again, at the worst moment. So V8 is told to keep it.
import { setFlagsFromString } from 'node:v8';

/** As good as for ever, within what V8 can count. */
const COLLECTIONS = 1_000_000_000;

/** For all threads of this process, and for good: there is no other way to tell V8. */
export function keepCompiledCode(): void {
  setFlagsFromString('--no-flush-bytecode');
  setFlagsFromString(`--retain-maps-for-n-gc=${COLLECTIONS}`); // of the objects that compiled code knows by their shape
}
