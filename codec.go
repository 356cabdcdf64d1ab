package fetchonce

// A Codec turns values into bytes and back. It is called by many goroutines
// at once. Unmarshal must treat data as hostile, as anybody who can write to
// Redis could have put it there, and must not keep data.
type Codec interface {
	Marshal(v any) ([]byte, error)
	Unmarshal(data []byte, v any) error
}
