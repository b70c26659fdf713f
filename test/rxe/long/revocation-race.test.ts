// The revocation race with as many trials as a strategy is to be trusted on:
// npm run test:rxe -- test/rxe/long/revocation-race.test.ts, and the same with --pin for one host processor.
import { revocationRaceTests } from '../revocation-race.js';

revocationRaceTests(300);
