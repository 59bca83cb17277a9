package mongo

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

// inserter sends ordered inserts, one at a time, each a command that is made here of
// documents that are bytes already. The driver's InsertMany unmarshals each document
// again to learn its _id: that is a third of what it costs this process.
//
// Each command has a transaction number, as the driver gives retryable writes, so that
// an attempt that was given up and lands late is refused (225). The driver session is
// the inserter's alone: no other write goes through it, and it does not return to the
// pool, whose numbers are lower. The driver does not try again by itself; a caller
// looks what is stored first in any case.
//
// For one goroutine.
type inserter struct {
	coll *mongo.Collection
	// bypass: the documents pass by the collection's validator.
	bypass bool
	sess   *mongo.Session
	txn    int64
	buf    []byte
}

func newInserter(client *mongo.Client, coll *mongo.Collection) (*inserter, error) {
	sess, err := client.StartSession()
	if err != nil {
		return nil, fmt.Errorf("mongo: session of inserts into %s: %w", coll.Name(), err)
	}
	return &inserter{coll: coll, sess: sess, txn: time.Now().UnixNano()}, nil
}

// insert makes one attempt with n documents; doc appends one to a slice.
func (in *inserter) insert(ctx context.Context, n int, doc func(b []byte, i int) []byte) error {
	in.txn++
	at, b := bsoncore.AppendDocumentStart(in.buf[:0])
	b = bsoncore.AppendStringElement(b, "insert", in.coll.Name())
	b = bsoncore.AppendBooleanElement(b, "ordered", true)
	b = bsoncore.AppendInt64Element(b, "txnNumber", in.txn)
	if in.bypass {
		b = bsoncore.AppendBooleanElement(b, "bypassDocumentValidation", true)
	}
	w, b := bsoncore.AppendDocumentElementStart(b, "writeConcern")
	b = bsoncore.AppendStringElement(b, "w", "majority")
	b = bsoncore.AppendBooleanElement(b, "j", true)
	b, _ = bsoncore.AppendDocumentEnd(b, w)
	list, b := bsoncore.AppendArrayElementStart(b, "documents")
	for i := range n {
		b = append(b, byte(bsoncore.TypeEmbeddedDocument))
		b = strconv.AppendInt(b, int64(i), 10)
		b = doc(append(b, 0), i)
	}
	b, _ = bsoncore.AppendArrayEnd(b, list)
	b, err := bsoncore.AppendDocumentEnd(b, at)
	if err != nil {
		return err
	}
	in.buf = b
	return in.coll.Database().RunCommand(mongo.NewSessionContext(ctx, in.sess), bson.Raw(b)).Err()
}

// end lets the server forget the session; without it, it does so in half an hour.
func (in *inserter) end(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = in.coll.Database().RunCommand(ctx, fields("endSessions", bson.A{in.sess.ID()})).Err()
}
