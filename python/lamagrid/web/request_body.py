"""Bounds the bodies of requests: the size of one and of all together, the number and the size of parts.

The parser is python-multipart's, whose time is linear in the body's length; Werkzeug's own was quadratic up
to 2.3.7, and Lama Cleaner 1.2.5 requires 2.2.2.

Does not: read a body whose declared length is too large.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import parse_qsl

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from werkzeug.datastructures import FileStorage, Headers
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from lamagrid.web.fair_share import Client, FairShare
from lamagrid.web.plain_responses import plain_error

FILE_SLACK_BYTES = 1 << 20
"""The allowance for headers of a file with uncompressed pixels; the same as the scheduler's."""
FIELDS_BYTES = 1 << 20
"""All text fields of a form together; upstream's page sends 1 KB and a prompt."""
PARTS = 100
"""Fields and files of a form; upstream's page sends 37."""
HEADERS_BYTES = 8 * 1024
"""All headers of one part."""
READ_BYTES = 256 * 1024


def max_file_bytes(max_pixels: int) -> int:
    """The largest file that is accepted: a picture of that many uncompressed pixels."""
    return max_pixels * 4 + FILE_SLACK_BYTES


def max_form_bytes(max_pixels: int) -> int:
    """The largest form that is accepted: a picture with a mask, both of the largest size."""
    return 2 * max_file_bytes(max_pixels) + FIELDS_BYTES


class BoundedBody:
    """``wsgi.input`` of one request, which ends with an error beyond its limits.

    Args:
        stream: The body, from the server.
        limit: Bytes of this body.
        share: Bytes of all bodies that are being read or answered.
        client: Whose share is used.
    """

    def __init__(self, stream: Any, limit: int, share: FairShare, client: Client) -> None:
        self._stream = stream
        self._limit = limit
        self._share = share
        self._client = client
        self._read = 0
        self._held = 0

    def read(self, size: int = -1) -> bytes:
        """Up to that many bytes; all of the body for a negative size."""
        if size is None or size < 0:
            pieces = []
            while piece := self.read(READ_BYTES):
                pieces.append(piece)
            return b"".join(pieces)
        return self._take(self._stream.read, size)

    def readline(self, size: int = -1) -> bytes:
        """One line, or its first part."""
        return self._take(self._stream.readline, READ_BYTES if size is None or size < 0 else size)

    def close(self) -> None:
        """Give back the share: the body has been freed."""
        held, self._held = self._held, 0
        self._share.give_back(self._client, held)

    def _take(self, read: Any, size: int) -> bytes:
        size = min(size, READ_BYTES)
        try:
            data: bytes = read(size)
        except TimeoutError as error:
            raise plain_error(408, "The body of the request came too slowly: send it again.") from error
        except OSError as error:
            raise plain_error(400, "The body of the request is broken or ended early.") from error
        self._read += len(data)
        if self._read > self._limit:
            raise too_large(self._limit)
        if not self._share.take(self._client, len(data)):
            raise plain_error(
                503, "The server holds too many uploads at the moment: try again in some seconds."
            )
        self._held += len(data)
        return data


def too_large(limit: int) -> Exception:
    """The answer to a body beyond its limit."""
    return plain_error(413, too_large_text(limit))


def too_large_text(limit: int) -> str:
    """The text of that answer."""
    return (
        f"The request is too large: at most {limit} bytes are accepted here (they follow from "
        "limits.max_pixels). Send a smaller picture."
    )


class BoundedFormParser(FormDataParser):
    """Reads forms as Werkzeug's parser does, within bounds and in linear time.

    Attributes:
        max_file_bytes: Of one file.
    """

    max_file_bytes = FILE_SLACK_BYTES

    def parse(
        self,
        stream: IO[bytes],
        mimetype: str,
        content_length: int | None,
        options: Mapping[str, str] | None = None,
    ) -> tuple[IO[bytes], Any, Any]:
        """The rest of the stream, the fields and the files; nothing of a form that is broken."""
        fields: list[tuple[str, str]] = []
        files: list[tuple[str, FileStorage]] = []
        if mimetype == "multipart/form-data":
            form = _Multipart(self, (options or {}).get("boundary", ""), content_length)
            # As in Werkzeug, a broken form has no fields.
            with contextlib.suppress(MultipartParseError, ValueError):
                form.read(stream)
                fields, files = form.fields, form.files
        elif mimetype in ("application/x-www-form-urlencoded", "application/x-url-encoded"):
            text = _read_fields(stream).decode("utf-8", "replace")
            if text.count("&") >= PARTS:
                raise _too_many_parts()
            fields = parse_qsl(text, keep_blank_values=True)
        return stream, self.cls(fields), self.cls(files)


class _Multipart:
    """One form that is being read."""

    def __init__(self, settings: BoundedFormParser, boundary: str, content_length: int | None) -> None:
        self.fields: list[tuple[str, str]] = []
        self.files: list[tuple[str, FileStorage]] = []
        self._settings = settings
        self._boundary = boundary or "\0"  # in no body: the form is broken
        self._content_length = content_length
        self._parts = self._headers_bytes = self._fields_bytes = self._file_bytes = 0
        self._name = ""
        self._field = bytearray()
        self._file: FileStorage | None = None
        self._headers: list[tuple[str, str]] = []
        self._header_name, self._header_value = bytearray(), bytearray()
        self._is_complete = False

    def read(self, stream: IO[bytes]) -> None:
        """Read it whole.

        Raises:
            ValueError: It is broken, or ends too early.
        """
        # A local variable: an attribute would make a cycle, which keeps the files until it is collected.
        parser = MultipartParser(
            self._boundary.encode("latin-1"),
            {
                "on_part_begin": self._on_part_begin,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_end": self._on_end,
            },
        )
        try:
            while not self._is_complete and (data := stream.read(READ_BYTES)):
                parser.write(data)
            if not self._is_complete:
                raise ValueError("the form is incomplete")
        except BaseException:
            for _, file in self.files:
                file.close()
            raise

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise _too_many_parts()
        self._headers = []
        self._headers_bytes = 0
        self._field = bytearray()
        self._file = None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += self._header(data, start, end)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += self._header(data, start, end)

    def _header(self, data: bytes, start: int, end: int) -> bytes:
        self._headers_bytes += end - start
        if self._headers_bytes > HEADERS_BYTES:
            raise ValueError("the headers of a part are too long")
        return data[start:end]

    def _on_header_end(self) -> None:
        name, value = (each.decode("utf-8", "replace") for each in (self._header_name, self._header_value))
        self._headers.append((name, value))
        self._header_name, self._header_value = bytearray(), bytearray()

    def _on_headers_finished(self) -> None:
        headers = Headers(self._headers)
        _, options = parse_options_header(headers.get("Content-Disposition", ""))
        if "name" not in options:
            raise ValueError("a part has no name")
        self._name = options["name"]
        filename = options.get("filename")
        if filename is not None:
            self._file_bytes = 0
            container = self._settings.stream_factory(
                total_content_length=self._content_length,
                content_type=headers.get("Content-Type"),
                filename=filename,
                content_length=None,
            )
            self._file = FileStorage(container, filename, self._name, headers=headers)
            self.files.append((self._name, self._file))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file_bytes += end - start
            if self._file_bytes > self._settings.max_file_bytes:
                raise too_large(self._settings.max_file_bytes)
            self._file.stream.write(memoryview(data)[start:end])
            return
        self._fields_bytes += end - start
        if self._fields_bytes > FIELDS_BYTES:
            raise _too_large_fields()
        self._field += data[start:end]

    def _on_part_end(self) -> None:
        if self._file is not None:
            self._file.stream.seek(0)
        else:
            self.fields.append((self._name, self._field.decode("utf-8", "replace")))

    def _on_end(self) -> None:
        self._is_complete = True


def _read_fields(stream: IO[bytes]) -> bytes:
    text = bytearray()
    while data := stream.read(READ_BYTES):
        text += data
        if len(text) > FIELDS_BYTES:
            raise _too_large_fields()
    return bytes(text)


def _too_large_fields() -> Exception:
    return plain_error(413, f"The text fields are too large: at most {FIELDS_BYTES} bytes are accepted.")


def _too_many_parts() -> Exception:
    return plain_error(413, f"The form has too many fields: at most {PARTS} are accepted.")
