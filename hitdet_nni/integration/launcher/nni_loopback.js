// Loaded into NNI's node by NODE_OPTIONS=--require: keeps its web server on 127.0.0.1.
// NNI 3.0 calls listen(port) without a host, which serves its REST API, without a login, on every interface.
'use strict';

const net = require('net');

const LOOPBACK = '127.0.0.1';
const EVERY_INTERFACE = new Set(['', '0.0.0.0', '0', '::', '::0', '0:0:0:0:0:0:0:0', '::ffff:0.0.0.0', '[::]']);

const listen = net.Server.prototype.listen;

function host(asked) {
    return asked === undefined || asked === null || EVERY_INTERFACE.has(asked) ? LOOPBACK : asked;
}

// node's own rule: a string that is no number is the path of a pipe or unix socket.
function isPort(value) {
    return typeof value === 'number' || (typeof value === 'string' && Number(value) >= 0);
}

net.Server.prototype.listen = function (first, ...rest) {
    if (first === undefined || first === null) { // listen() and listen(null, ...): any free port
        first = 0;
    } else if (typeof first === 'function') { // listen(callback): the same
        rest.unshift(first);
        first = 0;
    }
    if (isPort(first)) { // listen(port[, host][, backlog][, callback])
        const hosted = typeof rest[0] === 'string' || rest[0] === undefined || rest[0] === null;
        return listen.call(this, first, host(hosted ? rest.shift() : undefined), ...rest);
    }
    if (typeof first === 'object' && 'port' in first) {
        return listen.call(this, { ...first, host: host(first.host) }, ...rest);
    }
    return listen.call(this, first, ...rest); // pipes, unix sockets, handles and descriptors
};
