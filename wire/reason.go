package wire

import (
	"errors"
	"fmt"
)

// ReasonCode is a reason code of MQTT 5.0 (section 2.4). Codes from 0x80 up say that something failed. It is used for
// connections of every version; what an older one cannot carry is mapped or left out when it is encoded.
type ReasonCode byte

// The reason codes, named as in the standard.
const (
	Success                             ReasonCode = 0x00 // also Normal disconnection and Granted QoS 0
	GrantedQoS1                         ReasonCode = 0x01
	GrantedQoS2                         ReasonCode = 0x02
	DisconnectWithWill                  ReasonCode = 0x04 // Disconnect with Will Message
	NoMatchingSubscribers               ReasonCode = 0x10
	NoSubscriptionExisted               ReasonCode = 0x11
	ContinueAuthentication              ReasonCode = 0x18
	ReAuthenticate                      ReasonCode = 0x19
	UnspecifiedError                    ReasonCode = 0x80
	MalformedPacket                     ReasonCode = 0x81
	ProtocolError                       ReasonCode = 0x82
	ImplementationSpecificError         ReasonCode = 0x83
	UnsupportedProtocolVersion          ReasonCode = 0x84
	ClientIdentifierNotValid            ReasonCode = 0x85
	BadUserNameOrPassword               ReasonCode = 0x86
	NotAuthorized                       ReasonCode = 0x87
	ServerUnavailable                   ReasonCode = 0x88
	ServerBusy                          ReasonCode = 0x89
	Banned                              ReasonCode = 0x8A
	ServerShuttingDown                  ReasonCode = 0x8B
	BadAuthenticationMethod             ReasonCode = 0x8C
	KeepAliveTimeout                    ReasonCode = 0x8D
	SessionTakenOver                    ReasonCode = 0x8E
	TopicFilterInvalid                  ReasonCode = 0x8F
	TopicNameInvalid                    ReasonCode = 0x90
	PacketIdentifierInUse               ReasonCode = 0x91
	PacketIdentifierNotFound            ReasonCode = 0x92
	ReceiveMaximumExceeded              ReasonCode = 0x93
	TopicAliasInvalid                   ReasonCode = 0x94
	PacketTooLarge                      ReasonCode = 0x95
	MessageRateTooHigh                  ReasonCode = 0x96
	QuotaExceeded                       ReasonCode = 0x97
	AdministrativeAction                ReasonCode = 0x98
	PayloadFormatInvalid                ReasonCode = 0x99
	RetainNotSupported                  ReasonCode = 0x9A
	QoSNotSupported                     ReasonCode = 0x9B
	UseAnotherServer                    ReasonCode = 0x9C
	ServerMoved                         ReasonCode = 0x9D
	SharedSubscriptionsNotSupported     ReasonCode = 0x9E
	ConnectionRateExceeded              ReasonCode = 0x9F
	MaximumConnectTime                  ReasonCode = 0xA0
	SubscriptionIdentifiersNotSupported ReasonCode = 0xA1
	WildcardSubscriptionsNotSupported   ReasonCode = 0xA2
)

// String returns the name as a slug for logs and metrics, such as "malformed_packet". The number of different
// results is bounded: a code that the standard does not know gives "unknown".
func (c ReasonCode) String() string {
	switch c {
	case Success:
		return "success"
	case GrantedQoS1:
		return "granted_qos_1"
	case GrantedQoS2:
		return "granted_qos_2"
	case DisconnectWithWill:
		return "disconnect_with_will"
	case NoMatchingSubscribers:
		return "no_matching_subscribers"
	case NoSubscriptionExisted:
		return "no_subscription_existed"
	case ContinueAuthentication:
		return "continue_authentication"
	case ReAuthenticate:
		return "re_authenticate"
	case UnspecifiedError:
		return "unspecified_error"
	case MalformedPacket:
		return "malformed_packet"
	case ProtocolError:
		return "protocol_error"
	case ImplementationSpecificError:
		return "implementation_specific_error"
	case UnsupportedProtocolVersion:
		return "unsupported_protocol_version"
	case ClientIdentifierNotValid:
		return "client_identifier_not_valid"
	case BadUserNameOrPassword:
		return "bad_user_name_or_password"
	case NotAuthorized:
		return "not_authorized"
	case ServerUnavailable:
		return "server_unavailable"
	case ServerBusy:
		return "server_busy"
	case Banned:
		return "banned"
	case ServerShuttingDown:
		return "server_shutting_down"
	case BadAuthenticationMethod:
		return "bad_authentication_method"
	case KeepAliveTimeout:
		return "keep_alive_timeout"
	case SessionTakenOver:
		return "session_taken_over"
	case TopicFilterInvalid:
		return "topic_filter_invalid"
	case TopicNameInvalid:
		return "topic_name_invalid"
	case PacketIdentifierInUse:
		return "packet_identifier_in_use"
	case PacketIdentifierNotFound:
		return "packet_identifier_not_found"
	case ReceiveMaximumExceeded:
		return "receive_maximum_exceeded"
	case TopicAliasInvalid:
		return "topic_alias_invalid"
	case PacketTooLarge:
		return "packet_too_large"
	case MessageRateTooHigh:
		return "message_rate_too_high"
	case QuotaExceeded:
		return "quota_exceeded"
	case AdministrativeAction:
		return "administrative_action"
	case PayloadFormatInvalid:
		return "payload_format_invalid"
	case RetainNotSupported:
		return "retain_not_supported"
	case QoSNotSupported:
		return "qos_not_supported"
	case UseAnotherServer:
		return "use_another_server"
	case ServerMoved:
		return "server_moved"
	case SharedSubscriptionsNotSupported:
		return "shared_subscriptions_not_supported"
	case ConnectionRateExceeded:
		return "connection_rate_exceeded"
	case MaximumConnectTime:
		return "maximum_connect_time"
	case SubscriptionIdentifiersNotSupported:
		return "subscription_identifiers_not_supported"
	case WildcardSubscriptionsNotSupported:
		return "wildcard_subscriptions_not_supported"
	}
	return "unknown"
}

// Failed reports whether the code tells a failure (0x80 and above).
func (c ReasonCode) Failed() bool { return c >= 0x80 }

// Error says what the peer did wrong. After it the connection has to be closed [MQTT-4.13.1-1].
type Error struct {
	// Code is the reason code for the DISCONNECT, or for the CONNACK when Packet is CONNECT.
	Code ReasonCode
	// Packet is the type that the first byte announced; 0 before the first byte and for a type that does not exist.
	Packet PacketType
	// Err tells details, for the log and for a reason string. It holds nothing that the peer sent.
	Err error
}

// Error returns the packet type, the code and the details.
func (e *Error) Error() string {
	if e.Packet == 0 {
		return fmt.Sprintf("wire: %s: %v", e.Code, e.Err)
	}
	return fmt.Sprintf("wire: %s: %s: %v", e.Packet, e.Code, e.Err)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

func malformed(what string) *Error {
	return &Error{Code: MalformedPacket, Err: errors.New(what)}
}

func protocolError(what string) *Error {
	return &Error{Code: ProtocolError, Err: errors.New(what)}
}
