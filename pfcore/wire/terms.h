/* The words of the wire, in the layout that we write and read fastest (docs/protocol.md): each once. */
#ifndef PFCORE_TERMS_H
#define PFCORE_TERMS_H

#include <stdint.h>

/* {"type":"submit","seq":7,"payload":{"version":"1.0","id":"...","group":"df","element":"x","data":...,"priority":5
 * ,"timeout_ms":1000,"dependencies":[...],"metadata":{...}}} */
#define PF_W_SUBMIT "{\"type\":\"submit\",\"seq\":"
#define PF_W_RESULT "{\"type\":\"result\",\"seq\":"
#define PF_W_ERROR "{\"type\":\"error\",\"seq\":"
#define PF_W_HEARTBEAT "{\"type\":\"heartbeat\",\"seq\":"
#define PF_W_PAYLOAD ",\"payload\":"
#define PF_W_PACKET "{\"version\":\"1.0\",\"id\":"
#define PF_W_GROUP ",\"group\":\""
#define PF_W_ELEMENT "\",\"element\":\""
#define PF_W_DATA ",\"data\":"
#define PF_W_PRIORITY ",\"priority\":"
#define PF_W_TIMEOUT ",\"timeout_ms\":"
#define PF_W_DEPENDENCIES ",\"dependencies\":"
#define PF_W_METADATA ",\"metadata\":"
/* {"type":"result","seq":7,"payload":{"packet_id":"...","status":"success","data":...,"duration_ms":1}} */
#define PF_W_ANSWER "{\"packet_id\":"
#define PF_W_SUCCESS ",\"status\":\"success\",\"data\":"
#define PF_W_FAILURE ",\"status\":\"error\",\"error\":"
#define PF_W_DURATION ",\"duration_ms\":"
/* ... several of them as one, where they are compared or written together */
#define PF_W_PAYLOAD_PACKET PF_W_PAYLOAD PF_W_PACKET
#define PF_W_UUID_PACKET PF_W_PAYLOAD_PACKET "\""
#define PF_W_UUID_ANSWER PF_W_PAYLOAD PF_W_ANSWER "\""
#define PF_W_UUID_GROUP "\"" PF_W_GROUP
#define PF_W_UUID_SUCCESS "\"" PF_W_SUCCESS
#define PF_W_ELEMENT_DATA "\"" PF_W_DATA

#define PF_BYTES_OF(text) ((Py_ssize_t)sizeof(text) - 1)

#define PF_MAX_SEQ INT64_C(9007199254740991)
#define PF_FIRST_ROUTED INT64_C(1099511627776)

#endif
