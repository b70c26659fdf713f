// The directories of durable replicas: one folder for the run, on the machine's file system for temporary files, with a
// directory for each replica. A replica that is killed finds its own again; one whose disk is lost finds nothing.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export class Disks {
  readonly folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-disks-'));

  directory(id: number): string {
    return join(this.folder, `replica-${id}`);
  }

  /** Its replica does not run. */
  lose(id: number): void {
    rmSync(this.directory(id), { recursive: true, force: true });
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
