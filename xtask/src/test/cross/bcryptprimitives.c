/* Rust's standard library asks Windows for random bytes by this function, and Wine 8 has no such library.
   https://learn.microsoft.com/en-us/windows/win32/seccng/processprng */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length)
{
    const ULONG most = 1 << 20;

    while (length > 0) {
        ULONG now = length < most ? (ULONG)length : most;

        if (!SystemFunction036(data, now))
            return FALSE;
        data += now;
        length -= now;
    }
    return TRUE;
}
