// Devices: what there is, and opening one.
import { Context } from './context.js';
import { addon } from './load-addon.js';
import type { DeviceInfo, IbverbsStatus } from './native.js';

export type {
  DeviceAttributes,
  DeviceInfo,
  ExtendedDeviceAttributes,
  IbverbsStatus,
  PortAttributes,
} from './native.js';
export { PortState } from './native.js';

/** Where devices are looked for. */
export interface DeviceOptions {
  /**
   * Folder in which the shm device keeps its segments; all processes that shall reach each other use the same. It is
   * created with mode 0700. Default: the environment variable QUORATE_SHM_DIR, else /dev/shm/quorate-<uid>.
   */
  shmDirectory?: string;
}

/**
 * The devices of this host: the built-in "shm" device first, then those of the kernel, see ibv_get_device_list(3). That
 * the kernel's devices cannot be used at all is not an error here; {@link ibverbsStatus} tells why.
 *
 * @throws TypeError QUORATE_INVALID_ARGUMENT for unknown options
 */
export function listDevices(options: DeviceOptions = {}): DeviceInfo[] {
  return addon.listDevices(options);
}

/** Whether the kernel's RDMA devices can be used, and if not, why and what to do about it. */
export function ibverbsStatus(): IbverbsStatus {
  return addon.ibverbsStatus();
}

/**
 * Opens a device by its name ("shm", "rxe0", "mlx5_0"), see ibv_open_device(3). The context lives until it is closed
 * or no longer referenced.
 *
 * @throws QuorateError QUORATE_NO_DEVICE (the message names the devices there are), QUORATE_NO_LIBRARY, QUORATE_SYSTEM;
 * TypeError QUORATE_INVALID_ARGUMENT, also for unknown options
 */
export function openDevice(name: string, options: DeviceOptions = {}): Context {
  return Context.of(addon.openDevice(name, options));
}
