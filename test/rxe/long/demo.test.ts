// The demo with a leader that is stopped, and continued when another one serves.
import { demoTests } from '../demo.js';

demoTests(['SIGSTOP']);
