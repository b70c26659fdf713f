// A short revocation race, in every run of the suite; test/rxe/long has the one with 300 trials, and test/rxe/one-core
// the one in which an unsound strategy is found out.
import { synchronousStrategiesLeaveNoLateByte } from './revocation-race.js';

synchronousStrategiesLeaveNoLateByte(100);
