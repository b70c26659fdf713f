// A short revocation race, in every run of the suite; test/rxe/long has the one with 300 trials.
import { revocationRaceTests } from './revocation-race.js';

revocationRaceTests(100);
