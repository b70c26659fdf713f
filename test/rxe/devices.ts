// The RDMA devices that tests may use: scripts/rxe-vm.mjs names them.
export function rdmaDevices(): string[] {
  const names = (process.env.QUORATE_RDMA_DEVICES ?? '').split(',').filter((name) => name !== '');
  if (names.length === 0) {
    throw new Error('QUORATE_RDMA_DEVICES names no device; run these tests with "npm run test:rxe"');
  }
  return names;
}

/** The device of a replica that has one to itself. */
export const deviceOf = (id: number): string => rdmaDevices()[id] as string;
