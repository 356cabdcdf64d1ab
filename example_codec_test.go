package fetchonce_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
)

// A sealedCodec encrypts values with AES-GCM. A value's key is its additional data, so that a
// value that is copied to another key cannot be decrypted.
type sealedCodec struct {
	fetchonce.Codec // encodes the value
	aead            cipher.AEAD
	owner           string // names the Loader, so that Loaders with one secret do not share values
}

func newSealedCodec(secret []byte, owner string) (*sealedCodec, error) {
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &sealedCodec{fetchonce.Msgpack, aead, owner}, nil
}

// MarshalKey encodes and encrypts v.
func (c *sealedCodec) MarshalKey(key string, v any) ([]byte, error) {
	plain, err := c.Codec.Marshal(v)
	if err != nil {
		return nil, err
	}
	return c.aead.Seal(nil, nil, plain, []byte(c.owner+"\x00"+key)), nil
}

// UnmarshalKey decrypts and decodes data that MarshalKey returned for the same key.
func (c *sealedCodec) UnmarshalKey(key string, data []byte, v any) error {
	plain, err := c.aead.Open(nil, nil, data, []byte(c.owner+"\x00"+key))
	if err != nil {
		return err
	}
	return c.Codec.Unmarshal(plain, v)
}

var errNeedsKey = errors.New("values are encrypted for their key")

// Marshal refuses v: fetchonce calls MarshalKey instead.
func (*sealedCodec) Marshal(any) ([]byte, error) { return nil, errNeedsKey }

// Unmarshal refuses data: fetchonce calls UnmarshalKey instead.
func (*sealedCodec) Unmarshal([]byte, any) error { return errNeedsKey }

// A KeyCodec encrypts values, so that Redis cannot read them, and binds each to its key.
func ExampleKeyCodec() {
	rdb := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
	defer rdb.Close()
	secret := make([]byte, 32) // the same in all processes
	_, _ = rand.Read(secret)
	codec, err := newSealedCodec(secret, "accounts")
	if err != nil {
		fmt.Println(err)
		return
	}
	accounts, err := fetchonce.New(rdb, fetchonce.Options[string]{Prefix: "accounts", Codec: codec})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer accounts.Close()
	balance, err := accounts.Get(context.Background(), "alice", func(context.Context, string) (string, error) {
		return "1000 EUR", nil
	})
	fmt.Println(balance, err)
}
