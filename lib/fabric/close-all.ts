// An object that cannot be closed, since its device failed, say, keeps no other one open.

/** Closes what there is, in this order, even if one of them cannot be closed; then throws what the first of these threw. */
export function closeAll(objects: readonly ({ close(): void } | null | undefined)[]): void {
  let failure: unknown;
  for (const object of objects) {
    try {
      object?.close();
    } catch (error) {
      failure ??= error;
    }
  }
  if (failure !== undefined) throw failure;
}
