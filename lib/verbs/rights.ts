// Rights and states of queue pairs as bare numbers, for code that decides about permissions and also runs where there is no
// device: this module loads no addon.
export { Access, QpState } from './native.js';
