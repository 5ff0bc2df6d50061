// The checks of the grpc-js client. Takes the proxy's address; prints a line for each check, and ends at the first failure.
'use strict';

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { once } = require('node:events');
const grpc = require('@grpc/grpc-js');
const { service } = require('./grpcjs_service.js');

const PATIENCE = 60_000; // for any one call; none of them takes seconds
const CHUNK = Buffer.from(Array.from({ length: 65536 }, (_, index) => index % 256));
const MANY = 1600; // times CHUNK is 100 MiB
const ECHOED = [
  ['x-echo-text', 'plain text; with, signs'],
  ['x-echo-many', 'one'],
  ['x-echo-many', 'two'],
  ['x-echo-bytes-bin', Buffer.from(CHUNK.subarray(0, 256))],
  ['x-echo-many-bin', Buffer.from([0])],
  ['x-echo-many-bin', Buffer.from([0xff, 0xfe])],
];

const Echo = grpc.makeGenericClientConstructor(service, 'Echo');
const echo = new Echo(process.argv[2], grpc.credentials.createInsecure(), {
  'grpc.max_receive_message_length': -1,
  'grpc.max_send_message_length': -1,
});

function metadata(pairs) {
  const made = new grpc.Metadata();
  pairs.forEach(([key, value]) => made.add(key, value));
  return made;
}

// What was echoed. HTTP lets anybody join repeated headers of text, and Node does.
function echoed(received) {
  const keys = Object.keys(received.getMap()).filter((key) => key.startsWith('x-echo-'));
  return Object.fromEntries(keys.map((key) => {
    const values = received.get(key);
    return [key, key.endsWith('-bin') ? values.map((value) => value.toString('hex')) : values.join(', ')];
  }));
}

const deadline = (wait = PATIENCE) => ({ deadline: Date.now() + wait });
const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');

function unaryCall(method, request, pairs = []) {
  return new Promise((resolve) => {
    const outcome = {};
    const call = echo[method](request, metadata(pairs), deadline(), (error, answer) => Object.assign(outcome, { error, answer }));
    call.on('metadata', (head) => { outcome.head = head; });
    call.on('status', (status) => resolve(Object.assign(outcome, { status })));
  });
}

// Everything that a call brings, once it is over. `each` may hold the reading back.
async function read(call, each = () => {}) {
  const outcome = { answers: 0 };
  const status = new Promise((resolve) => { call.on('status', resolve); });
  call.on('metadata', (head) => { outcome.head = head; });
  call.on('error', (error) => { outcome.error = error; });
  call.on('data', (answer) => {
    outcome.answers += 1;
    each(answer);
  });
  outcome.status = await status;
  return outcome;
}

async function write(call, message) {
  if (!call.write(message)) await Promise.race([once(call, 'drain'), once(call, 'status')]);
}

async function seen(id, state) {
  const { answer } = await unaryCall('Seen', Buffer.alloc(0), [['x-id', id], ['x-state', state]]);
  return answer.subarray(2).toString().split(' ');
}

const CHECKS = {
  async unary() {
    for (const text of ['hello', '']) {
      const { answer } = await unaryCall('Unary', Buffer.from(text));
      assert.equal(answer.toString(), text);
    }
  },

  async 'client streaming'() {
    const messages = ['a', '', 'bc'.repeat(1000)].map((text) => Buffer.from(text));
    const answer = await new Promise((resolve, reject) => {
      const call = echo.Collect(metadata([]), deadline(), (error, done) => (error ? reject(error) : resolve(done)));
      messages.forEach((message) => call.write(message));
      call.end();
    });
    assert.equal(answer.subarray(2).toString(), `3 2001 ${sha256(Buffer.concat(messages))}`);
  },

  async 'server streaming'() {
    const call = echo.Repeat(Buffer.from('again'), metadata([['x-count', '7']]), deadline());
    const { answers, status } = await read(call, (answer) => assert.equal(answer.toString(), 'again'));
    assert.deepEqual([answers, status.code], [7, grpc.status.OK]);
  },

  async 'bidirectional streaming'() {
    const call = echo.Talk(metadata([]), deadline());
    for (let index = 0; index < 100; index += 1) {
      const message = Buffer.from(String(index).repeat(index));
      call.write(message);
      const [answer] = await once(call, 'data');
      assert.ok(answer.equals(message));
    }
    call.end();
    const [status] = await once(call, 'status');
    assert.equal(status.code, grpc.status.OK);
  },

  async 'metadata both ways'() {
    const { head, status } = await unaryCall('Unary', Buffer.from('hi'), ECHOED);
    assert.deepEqual(echoed(head), echoed(metadata(ECHOED)));
    assert.deepEqual(echoed(status.metadata), echoed(metadata(ECHOED)));
  },

  async 'metadata of streams'() {
    const call = echo.Talk(metadata(ECHOED), deadline());
    call.end(Buffer.from('hi'));
    const { head, status } = await read(call);
    assert.deepEqual(echoed(head), echoed(metadata(ECHOED)));
    assert.deepEqual(echoed(status.metadata), echoed(metadata(ECHOED)));
  },

  async 'error with message and details'() {
    const message = 'naïve 100% — не найдено 🦀\nsecond line';
    const details = Buffer.from('\x08\x05details');
    for (let code = 1; code <= 16; code += 1) {
      const asked = [['x-fail', String(code)], ['x-fail-message-bin', Buffer.from(message)], ['x-fail-details-bin', details]];
      const { error } = await unaryCall('Unary', Buffer.alloc(0), [...ECHOED, ...asked]);
      assert.deepEqual([error.code, error.details], [code, message]);
      assert.ok(error.metadata.get('grpc-status-details-bin')[0].equals(details));
      assert.deepEqual(echoed(error.metadata), echoed(metadata(ECHOED)));
    }
  },

  async cancellation() {
    const id = crypto.randomUUID();
    const call = echo.Hang(metadata([['x-id', id]]));
    const done = read(call);
    call.write(Buffer.from('hello'));
    assert.deepEqual(await seen(id, 'started'), ['started', 'none']);
    call.cancel();
    const began = Date.now();
    assert.equal((await seen(id, 'ended'))[0], 'ended');
    assert.ok(Date.now() - began < 2000, 'the server heard of it only much later');
    assert.equal((await done).status.code, grpc.status.CANCELLED);
  },

  async deadline() {
    const id = crypto.randomUUID();
    const began = Date.now();
    const { status } = await read(echo.Hang(metadata([['x-id', id]]), deadline(1000)));
    const took = Date.now() - began;
    assert.equal(status.code, grpc.status.DEADLINE_EXCEEDED);
    assert.ok(took > 900 && took < 5000, `it took ${took} ms`);
    const [state, given] = await seen(id, 'ended');
    assert.equal(state, 'ended');
    assert.ok(Number(given) > 0 && Number(given) <= 1.02, `the server's deadline was ${given} s`);
  },

  async 'upload of 100 MiB'() {
    const digest = crypto.createHash('sha256');
    const answer = new Promise((resolve, reject) => {
      const call = echo.Collect(metadata([]), deadline(), (error, done) => (error ? reject(error) : resolve(done)));
      (async () => {
        for (let index = 0; index < MANY; index += 1) {
          digest.update(CHUNK);
          if (!call.write(CHUNK)) await once(call, 'drain');
        }
        call.end();
      })().catch(reject);
    });
    assert.equal((await answer).subarray(2).toString(), `${MANY} ${MANY * CHUNK.length} ${digest.digest('hex')}`);
  },

  async 'download of 100 MiB'() {
    const call = echo.Repeat(CHUNK, metadata([['x-count', String(MANY)]]), deadline());
    const { answers, status } = await read(call, (answer) => assert.ok(answer.equals(CHUNK)));
    assert.deepEqual([answers, status.code], [MANY, grpc.status.OK]);
  },

  async 'both ways at once 100 MiB'() {
    const call = echo.Talk(metadata([]), deadline());
    let next = 0;
    const done = read(call, (answer) => {
      assert.equal(answer.readUInt32BE(), next);
      assert.equal(answer.length, CHUNK.length);
      next += 1;
    });
    for (let index = 0; index < MANY; index += 1) {
      const message = Buffer.from(CHUNK);
      message.writeUInt32BE(index);
      await write(call, message);
    }
    call.end();
    const { answers, status } = await done;
    assert.deepEqual([answers, status.code], [MANY, grpc.status.OK]);
  },

  async 'many small messages'() {
    const call = echo.Repeat(Buffer.from('20 bytes, as it says'), metadata([['x-count', '20000']]), deadline());
    const { answers, status } = await read(call);
    assert.deepEqual([answers, status.code], [20000, grpc.status.OK]);
  },

  async 'large unary'() {
    const message = Buffer.concat(Array(160).fill(CHUNK));
    const { answer } = await unaryCall('Unary', message);
    assert.ok(answer.equals(message));
  },

  // The server ends the call with OK after three messages, whatever else the client still wants to send.
  async 'early end of the server'() {
    const call = echo.Talk(metadata([['x-count', '3'], ...ECHOED]), deadline());
    ['0', '1', '2'].forEach((text) => call.write(Buffer.from(text)));
    const { answers, status } = await read(call);
    assert.deepEqual([answers, status.code], [3, grpc.status.OK]);
    assert.deepEqual(echoed(status.metadata), echoed(metadata(ECHOED)));
  },

  // The server answers only when the client has said all.
  async 'half-close'() {
    const call = echo.Talk(metadata([['x-hold', '1']]), deadline());
    for (let index = 0; index < 100; index += 1) call.write(Buffer.from(String(index)));
    call.end();
    let next = 0;
    const { answers, status } = await read(call, (answer) => {
      assert.equal(answer.toString(), String(next));
      next += 1;
    });
    assert.deepEqual([answers, status.code], [100, grpc.status.OK]);
  },

  async 'two hundred calls at once'() {
    const calls = Array.from({ length: 200 }, (_, index) => unaryCall('Unary', Buffer.from(String(index))));
    const answers = (await Promise.all(calls)).map(({ answer }) => answer.toString());
    assert.deepEqual(answers, Array.from({ length: 200 }, (_, index) => String(index)));
  },
};

(async () => {
  for (const [name, check] of Object.entries(CHECKS)) {
    await check();
    console.log(name);
  }
  echo.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
