// A killed leader, in every run of the suite; test/rxe/long has the stopped one.
import { demoTests } from './demo.js';

demoTests(['SIGKILL']);
