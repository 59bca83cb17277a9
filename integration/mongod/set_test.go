package mongod_test

import (
	"context"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"rewindmq/integration/mongod"
)

func start(t *testing.T, members int) (*mongod.Set, *mongo.Collection) {
	t.Helper()
	mongod.Need(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	set, err := mongod.Start(ctx, mongod.Options{Dir: t.TempDir(), Members: members})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Stop)
	c, err := mongo.Connect(options.Client().ApplyURI(set.URI()).SetWriteConcern(writeconcern.Majority()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
	return set, c.Database("test").Collection("c")
}

func insert(t *testing.T, c *mongo.Collection) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.InsertOne(ctx, bson.D{{Key: "x", Value: 1}}); err != nil {
		t.Fatal(err)
	}
}

func TestSetOfOne(t *testing.T) {
	t.Parallel()
	set, c := start(t, 1)
	insert(t, c)
	m := set.Members()[0]
	m.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.InsertOne(ctx, bson.D{}); err == nil {
		t.Error("a paused member took a write")
	}
	m.Resume()
	insert(t, c)
	m.Kill()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	insert(t, c)
	n, err := c.CountDocuments(t.Context(), bson.D{{Key: "x", Value: 1}})
	if err != nil || n != 3 {
		t.Errorf("%d documents, %v; want 3", n, err)
	}
}

func TestSetOfThree(t *testing.T) {
	t.Parallel()
	set, c := start(t, 3)
	insert(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first, err := set.Primary(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.StepDown(ctx); err != nil {
		t.Fatal(err)
	}
	insert(t, c)
	second, err := set.Primary(ctx)
	if err != nil || second == first {
		t.Fatalf("after a step-down the primary is %v, was %v: %v", second, first, err)
	}
	second.Kill()
	insert(t, c)
}
