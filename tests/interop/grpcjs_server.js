// The service of echo.proto on grpc-js. Prints its port, and ends with its standard input.
'use strict';

const crypto = require('node:crypto');
const { EventEmitter } = require('node:events');
const grpc = require('@grpc/grpc-js');
const { service, note } = require('./grpcjs_service.js');

const seen = new Map();
const changed = new EventEmitter().setMaxListeners(0);

// Echoes the metadata `x-echo-*` in both places; an error is what the client asked to fail with.
function begin(call) {
  const echoed = new grpc.Metadata();
  for (const key of Object.keys(call.metadata.getMap())) {
    if (key.startsWith('x-echo-')) {
      call.metadata.get(key).forEach((value) => echoed.add(key, value));
    }
  }
  call.sendMetadata(echoed);
  const asked = call.metadata.getMap();
  if (!('x-fail' in asked)) return { asked, trailers: echoed };
  const trailers = echoed.clone();
  trailers.set('grpc-status-details-bin', asked['x-fail-details-bin']);
  const details = asked['x-fail-message-bin'].toString();
  return { asked, trailers, error: { code: Number(asked['x-fail']), details, metadata: trailers } };
}

function unary(call, answer) {
  const { trailers, error } = begin(call);
  answer(error ?? null, call.request, trailers);
}

function collect(call, answer) {
  const { trailers, error } = begin(call);
  if (error) return answer(error);
  let count = 0;
  let size = 0;
  const digest = crypto.createHash('sha256');
  call.on('data', (message) => {
    count += 1;
    size += message.length;
    digest.update(message);
  });
  call.on('end', () => answer(null, note(`${count} ${size} ${digest.digest('hex')}`), trailers));
  call.on('error', () => {});
}

async function repeat(call) {
  const { asked, trailers, error } = begin(call);
  if (error) return call.emit('error', error);
  for (let left = Number(asked['x-count'] ?? 3); left > 0; left -= 1) {
    if (!call.write(call.request)) {
      await new Promise((resolve) => call.once('drain', resolve));
    }
  }
  call.end(trailers);
}

function talk(call) {
  const { asked, trailers, error } = begin(call);
  if (error) return call.emit('error', error);
  const most = Number(asked['x-count'] ?? -1);
  const held = [];
  let count = 0;
  let ended = false;
  const end = () => {
    if (ended) return;
    ended = true;
    held.forEach((message) => call.write(message));
    call.end(trailers);
  };
  call.on('data', (message) => {
    if (ended) return;
    if ('x-hold' in asked) {
      held.push(message);
    } else if (!call.write(message)) {
      call.pause();
      call.once('drain', () => call.resume());
    }
    count += 1;
    if (count === most) end();
  });
  call.on('end', end);
  call.on('error', () => {});
}

function hang(call) {
  const id = call.metadata.get('x-id')[0];
  const deadline = call.getDeadline();
  const left = (deadline instanceof Date ? deadline.getTime() : deadline) - Date.now();
  const state = { state: 'started', left: Number.isFinite(left) ? (left / 1000).toFixed(3) : 'none' };
  seen.set(id, state);
  changed.emit('change');
  call.on('error', () => {});
  call.on('cancelled', () => {
    state.state = 'ended';
    changed.emit('change');
  });
  call.resume();
}

// Waits for the state that the client names in `x-state`.
function report(call, answer) {
  const { 'x-id': id, 'x-state': wanted } = call.metadata.getMap();
  const finish = () => {
    clearTimeout(timer);
    changed.off('change', look);
    const { state, left } = seen.get(id) ?? { state: 'unknown', left: 'none' };
    answer(null, note(`${state} ${left}`));
  };
  const look = () => {
    if ([wanted, 'ended'].includes(seen.get(id)?.state)) finish();
  };
  const timer = setTimeout(finish, 5000);
  changed.on('change', look);
  look();
}

const server = new grpc.Server({
  'grpc.max_receive_message_length': -1,
  'grpc.max_send_message_length': -1,
});
server.addService(service, {
  Unary: unary,
  Collect: collect,
  Repeat: repeat,
  Talk: talk,
  Hang: hang,
  Seen: report,
});
server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(port);
});
process.stdin.resume().on('end', () => process.exit(0));
