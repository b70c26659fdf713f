// How mutations reach into production classes: a method or getter is replaced for as long as the mutation is installed.
// The replaced methods are private; they are reached by name, and a name that is gone is an error.
// biome-ignore lint/suspicious/noExplicitAny: see above
export type Internals = any;
export type Method = (this: Internals, ...parameters: Internals[]) => Internals;

/** Replaces a method for as long as a mutation is installed; the function returned puts the original back. */
export function replace(target: object, name: string, make: (original: Method) => Method): () => void {
  const descriptor = Object.getOwnPropertyDescriptor(target, name);
  if (typeof descriptor?.value !== 'function') throw new Error(`there is no method ${name} to replace`);
  const original = descriptor.value as Method;
  Object.defineProperty(target, name, { ...descriptor, value: make(original) });
  return () => Object.defineProperty(target, name, descriptor);
}

export function replaceGetter(target: object, name: string, make: (original: Method) => Method): () => void {
  const descriptor = Object.getOwnPropertyDescriptor(target, name);
  if (descriptor?.get === undefined) throw new Error(`there is no getter ${name} to replace`);
  Object.defineProperty(target, name, { ...descriptor, get: make(descriptor.get as Method) });
  return () => Object.defineProperty(target, name, descriptor);
}

export function all(...undo: (() => void)[]): () => void {
  return () => {
    for (const mend of undo) mend();
  };
}
