// Makes the replica set rs0 of mongo1, mongo2 and mongo3, and waits until it has a primary. Run by mongosh against mongo1.
// On a set that exists it changes nothing, so it may run as often as one likes.
const config = {
  _id: 'rs0',
  members: [
    { _id: 0, host: 'mongo1:27017' },
    { _id: 1, host: 'mongo2:27017' },
    { _id: 2, host: 'mongo3:27017' },
  ],
};
const notYetInitialized = 94;
const alreadyInitialized = 23;

const deadline = Date.now() + 120 * 1000;
let last = 'nothing was tried';
for (;;) {
  try {
    if (db.hello().primary) {
      print('the replica set has a primary: ' + db.hello().primary);
      quit(0);
    }
    rs.status();
    last = 'the replica set has no primary yet';
  } catch (e) {
    last = String(e);
    if (e.code === notYetInitialized) {
      try {
        rs.initiate(config);
        print('the replica set is initiated');
      } catch (e) {
        last = String(e);
        if (e.code !== alreadyInitialized) {
          print('initiate: ' + last);
        }
      }
    }
  }
  if (Date.now() > deadline) {
    print('gave up: ' + last);
    quit(1);
  }
  sleep(500);
}
