#!/usr/bin/env python3
"""A transactional outbox on rewindmq's message collection, with PyMongo.

An order and the message that announces it are inserted in one transaction, so that there is never one without the
other. Inserting is publishing: the brokers deliver the document once the transaction has committed, and also to
sessions that are away.

    outbox.py 'mongodb://db1,db2,db3/?replicaSet=rs0' 4711
"""

import json
import sys

from pymongo import MongoClient, WriteConcern


def place_order(uri: str, order: str) -> None:
    with MongoClient(uri, w="majority") as client, client.start_session() as session:
        orders = client["shop"]["order"]
        messages = client["mqtt"]["message"]

        # The driver may run the function again, so it does nothing but these two inserts.
        def insert(session):
            orders.insert_one({"_id": order, "state": "placed"}, session=session)
            # topic and data are all that has to be there. The broker sets the rest when it adopts the document.
            messages.insert_one(
                {
                    "topic": f"shop/order/{order}",
                    "data": json.dumps({"order": order, "state": "placed"}),
                    "qos": 1,
                },
                session=session,
            )

        session.with_transaction(insert, write_concern=WriteConcern("majority"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: outbox.py CONNECTION-STRING ORDER")
    place_order(sys.argv[1], sys.argv[2])
