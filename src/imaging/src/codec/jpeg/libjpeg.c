/* Calls libjpeg-turbo the way Pillow 10.4 does, so that pixels and bytes are Pillow's, those of damaged files too.
 *
 * It is C because libjpeg reports an error by calling a function that must not return: setjmp and longjmp stay inside
 * this file, and the compiler checks the layout of libjpeg's structures. libjpeg.rs is the only caller.
 *
 * Source: Pillow 10.4 JpegDecode.c, JpegEncode.c, ImageFile.py.
 */

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

/* Pillow hands over a file in blocks of this size. The blocks decide which pixels a damaged file has: libjpeg treats
 * damage otherwise near the end of what it has been given. */
#define BLOCK_BYTES 65536

/* Room for coefficients beyond those of the pixels: each component is rounded up to whole MCUs. */
#define SPARE_BYTES (1L << 20)

#define FIRST_OUTPUT_BYTES 65536

enum outcome { DONE, FAILED, TOO_MANY_SCANS };

struct failure {
    struct jpeg_error_mgr manager; /* comes first, so that libjpeg's pointer is ours */
    jmp_buf jump;
    enum outcome outcome;
    char *message; /* of JMSG_LENGTH_MAX bytes */
};

static void give_up(struct failure *failure, enum outcome outcome, const char *message) {
    failure->outcome = outcome;
    strcpy(failure->message, message);
    longjmp(failure->jump, 1);
}

static void on_error(j_common_ptr common) {
    char message[JMSG_LENGTH_MAX];
    common->err->format_message(common, message);
    give_up((struct failure *)common->err, FAILED, message);
}

static void ignore_message(j_common_ptr common) {
    (void)common;
}

static struct jpeg_error_mgr *report_to(struct failure *failure, char *message) {
    jpeg_std_error(&failure->manager);
    failure->manager.error_exit = on_error;
    failure->manager.output_message = ignore_message;
    failure->message = message;
    return &failure->manager;
}

struct decoder {
    struct jpeg_decompress_struct jpeg; /* comes first, as above */
    struct failure failure;
    struct jpeg_source_mgr source;
    size_t hidden; /* bytes of the file that libjpeg has not been given yet */
    size_t skip;   /* how many of them are to be skipped */
    struct jpeg_progress_mgr progress;
    int max_scans;
};

static void ignore(j_decompress_ptr jpeg) {
    (void)jpeg;
}

static boolean suspend(j_decompress_ptr jpeg) {
    (void)jpeg;
    return FALSE;
}

static void skip(j_decompress_ptr jpeg, long count) {
    struct decoder *decoder = (struct decoder *)jpeg;
    size_t here = decoder->source.bytes_in_buffer;
    if ((size_t)count < here) {
        here = (size_t)count;
    }
    decoder->source.next_input_byte += here;
    decoder->source.bytes_in_buffer -= here;
    decoder->skip = (size_t)count - here;
}

/* Gives libjpeg the next block. */
static void feed(struct decoder *decoder) {
    do {
        size_t block = decoder->hidden < BLOCK_BYTES ? decoder->hidden : BLOCK_BYTES;
        if (block == 0) {
            give_up(&decoder->failure, FAILED, "truncated");
        }
        decoder->hidden -= block;
        decoder->source.bytes_in_buffer += block;
        skip(&decoder->jpeg, (long)decoder->skip);
    } while (decoder->skip > 0);
}

static void check_scans(j_common_ptr common) {
    struct decoder *decoder = (struct decoder *)common;
    if (decoder->jpeg.input_scan_number > decoder->max_scans) {
        give_up(&decoder->failure, TOO_MANY_SCANS, "too many scans");
    }
}

static enum outcome decode(struct decoder *decoder, unsigned width, unsigned height, int channels,
                           unsigned char *pixels) {
    j_decompress_ptr jpeg = &decoder->jpeg;
    int header;
    if (setjmp(decoder->failure.jump) != 0) {
        return decoder->failure.outcome;
    }
    jpeg_create_decompress(jpeg);
    jpeg->src = &decoder->source;
    jpeg->progress = &decoder->progress;
    jpeg->mem->max_memory_to_use = 2L * channels * ((long)width + 32) * ((long)height + 32) + SPARE_BYTES;
    while ((header = jpeg_read_header(jpeg, FALSE)) != JPEG_HEADER_OK) {
        if (header == JPEG_SUSPENDED) {
            feed(decoder);
        }
    }
    if (jpeg->image_width != width || jpeg->image_height != height || jpeg->num_components != channels) {
        give_up(&decoder->failure, FAILED, "its size is in doubt");
    }
    jpeg->out_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
    while (!jpeg_start_decompress(jpeg)) {
        feed(decoder);
    }
    while (jpeg->output_scanline < height) {
        JSAMPROW row = pixels + (size_t)jpeg->output_scanline * width * (size_t)channels;
        if (jpeg_read_scanlines(jpeg, &row, 1) != 1) {
            feed(decoder);
        }
    }
    /* As with Pillow, the file may end behind its last row, but what is there must not be wrong. */
    jpeg_finish_decompress(jpeg);
    return DONE;
}

/* Decodes a file, whose header says width, height and channels, to width * height * channels bytes: grey, RGB, or CMYK
 * as the file has it. Fails where Pillow fails; the message then says why. */
enum outcome lamagrid_jpeg_decode(const unsigned char *file, size_t length, unsigned width, unsigned height,
                                  int channels, int max_scans, unsigned char *pixels, char *message) {
    struct decoder decoder;
    enum outcome outcome;
    memset(&decoder, 0, sizeof decoder);
    decoder.jpeg.err = report_to(&decoder.failure, message);
    decoder.source.next_input_byte = file;
    decoder.source.init_source = ignore;
    decoder.source.fill_input_buffer = suspend;
    decoder.source.skip_input_data = skip;
    decoder.source.resync_to_restart = jpeg_resync_to_restart;
    decoder.source.term_source = ignore;
    decoder.hidden = length;
    decoder.progress.progress_monitor = check_scans;
    decoder.max_scans = max_scans;
    outcome = decode(&decoder, width, height, channels, pixels);
    jpeg_destroy_decompress(&decoder.jpeg);
    return outcome;
}

struct encoder {
    struct jpeg_compress_struct jpeg; /* comes first, as above */
    struct failure failure;
    struct jpeg_destination_mgr destination;
    unsigned char *file;
    size_t size; /* bytes allocated */
};

static void grow(struct encoder *encoder, size_t size) {
    unsigned char *file = realloc(encoder->file, size);
    if (file == NULL) {
        give_up(&encoder->failure, FAILED, "out of memory");
    }
    encoder->destination.next_output_byte = file + encoder->size;
    encoder->destination.free_in_buffer = size - encoder->size;
    encoder->file = file;
    encoder->size = size;
}

static void begin_output(j_compress_ptr jpeg) {
    grow((struct encoder *)jpeg, FIRST_OUTPUT_BYTES);
}

static boolean on_full_output(j_compress_ptr jpeg) {
    struct encoder *encoder = (struct encoder *)jpeg;
    grow(encoder, 2 * encoder->size);
    return TRUE;
}

static void end_output(j_compress_ptr jpeg) {
    (void)jpeg;
}

static enum outcome encode(struct encoder *encoder, const unsigned char *pixels, unsigned width, unsigned height,
                           int quality, const unsigned char *exif, unsigned exif_length) {
    j_compress_ptr jpeg = &encoder->jpeg;
    if (setjmp(encoder->failure.jump) != 0) {
        return encoder->failure.outcome;
    }
    jpeg_create_compress(jpeg);
    jpeg->dest = &encoder->destination;
    jpeg->image_width = width;
    jpeg->image_height = height;
    jpeg->input_components = 3;
    jpeg->in_color_space = JCS_RGB;
    jpeg_set_defaults(jpeg);
    jpeg_set_quality(jpeg, quality, TRUE);
    jpeg_start_compress(jpeg, TRUE);
    jpeg_write_marker(jpeg, JPEG_APP0 + 1, exif, exif_length);
    while (jpeg->next_scanline < height) {
        JSAMPROW row = (JSAMPROW)pixels + (size_t)jpeg->next_scanline * width * 3;
        jpeg_write_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_compress(jpeg);
    return DONE;
}

/* Encodes width * height RGB pixels and an EXIF segment. The caller frees *file, whatever the outcome. */
enum outcome lamagrid_jpeg_encode(const unsigned char *pixels, unsigned width, unsigned height, int quality,
                                  const unsigned char *exif, unsigned exif_length, unsigned char **file,
                                  size_t *length, char *message) {
    struct encoder encoder;
    enum outcome outcome;
    memset(&encoder, 0, sizeof encoder);
    encoder.jpeg.err = report_to(&encoder.failure, message);
    encoder.destination.init_destination = begin_output;
    encoder.destination.empty_output_buffer = on_full_output;
    encoder.destination.term_destination = end_output;
    outcome = encode(&encoder, pixels, width, height, quality, exif, exif_length);
    jpeg_destroy_compress(&encoder.jpeg);
    *file = encoder.file;
    *length = encoder.size - encoder.destination.free_in_buffer;
    return outcome;
}
