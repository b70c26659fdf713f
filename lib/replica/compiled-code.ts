// What V8 makes of code that hardly runs until it is needed. A rehearsal runs the code of a takeover some forty times, which for
// small functions is not enough: V8 interprets them, and learns nothing of the objects that they work on. So it is told to
// compile each function, and to learn, from the first call on, while a rehearsal is under way.
// And V8 forgets what it compiled of functions that have not run while the whole heap was collected a few times, and what it
// knows of objects of which none is there: in a busy service, within minutes, that is all of a takeover, rehearsed at start.
// The next takeover would have to learn it again, at the worst moment. So V8 is told to keep it.
import { setFlagsFromString } from 'node:v8';
import { beginFirstCalls, endFirstCalls } from '../verbs/first-calls.js';

/** As good as for ever, within what V8 can count. */
const COLLECTIONS = 1_000_000_000;

const AT_FIRST_CALL = 'always-sparkplug';
/** It is the user's own setting. */
const isAlwaysAtFirstCall = process.execArgv.includes(`--${AT_FIRST_CALL}`);

/**
 * Has V8 compile functions of all threads of this process at their first call, until the function that is returned is called,
 * or the calling thread ends. Threads should not start meanwhile: they take longer.
 */
export function compileAtFirstCall(): () => void {
  let isAsking = !isAlwaysAtFirstCall;
  if (isAsking && beginFirstCalls()) setFlagsFromString(`--${AT_FIRST_CALL}`);
  return () => {
    if (!isAsking) return;
    isAsking = false;
    if (endFirstCalls()) setFlagsFromString(`--no-${AT_FIRST_CALL}`);
  };
}

/** For all threads of this process, and for good: there is no other way to tell V8. */
export function keepCompiledCode(): void {
  setFlagsFromString('--no-flush-bytecode');
  setFlagsFromString(`--retain-maps-for-n-gc=${COLLECTIONS}`); // of the objects that compiled code knows by their shape
}
