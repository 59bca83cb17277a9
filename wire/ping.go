package wire

// Pingreq is a PINGREQ.
type Pingreq struct{}

// Pingresp is a PINGRESP. Only clients receive it.
type Pingresp struct{}

// AppendPingreq appends a PINGREQ, as a client would send it.
func AppendPingreq(dst []byte) []byte { return append(dst, byte(PINGREQ)<<4, 0) }

// AppendPingresp appends a PINGRESP [MQTT-3.12.4-1].
func AppendPingresp(dst []byte) []byte { return append(dst, byte(PINGRESP)<<4, 0) }
