// The revocation race with as many trials as a strategy is to be trusted on:
// npm run test:rxe -- test/rxe/long/revocation-race.test.ts, and the same with --pin for one host processor.
import { flagsAloneLeaveLateBytes, synchronousStrategiesLeaveNoLateByte } from '../revocation-race.js';

synchronousStrategiesLeaveNoLateByte(300);
flagsAloneLeaveLateBytes();
