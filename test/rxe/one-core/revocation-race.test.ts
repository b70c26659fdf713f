// The revocation race where it is hardest, with both virtual processors on one core of the host: the sound strategies
// leave no late byte there either, and that of the unsound one does shows that the test can find late bytes.
// npm run test:rxe -- --pin test/rxe/one-core
import { flagsAloneLeaveLateBytes, synchronousStrategiesLeaveNoLateByte } from '../revocation-race.js';

synchronousStrategiesLeaveNoLateByte(50);
flagsAloneLeaveLateBytes();
